#include <memsieve/error.h>
#include <runtime/launch.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace memsieve::runtime {

namespace {

[[noreturn]] void fail(const std::string& text) {
  throw ConfigError("launch: " + text);
}

class Variables {
 public:
  explicit Variables(const GetEnv& getenv) : getenv_(getenv) {}

  std::optional<std::string> text(const char* name) const { return getenv_(name); }
  bool has(const char* name) const { return getenv_(name).has_value(); }

  std::optional<int> number(const char* name, int least = 0) const {
    const auto value = getenv_(name);
    if (!value) return std::nullopt;
    int result = 0;
    const char* end = value->data() + value->size();
    const auto parsed = std::from_chars(value->data(), end, result);
    if (value->empty() || parsed.ec != std::errc() || parsed.ptr != end || result < least)
      fail(std::string(name) + " is '" + *value + "'; it must be a whole number of at least " + std::to_string(least));
    return result;
  }

  int needed(const char* name, const char* why, int least = 0) const {
    const auto value = number(name, least);
    if (!value) fail(std::string(name) + " is not set " + why);
    return *value;
  }

 private:
  const GetEnv& getenv_;
};

std::string assign(const char* name, int value) {
  return std::string(name) + "=" + std::to_string(value);
}

void check_place(const char* place_name, int place, const char* size_name, int size) {
  if (place >= size)
    fail(assign(place_name, place) + " but " + assign(size_name, size) + "; " + place_name + " must be below " +
         size_name);
}

int master_port(const Variables& env) {
  const int port = env.needed("MASTER_PORT", "; set it to a free port on the machine of rank 0", 1);
  if (port > 65535) fail(assign("MASTER_PORT", port) + "; a port is at most 65535");
  return port;
}

// srun starts its tasks with SLURM_STEP_ID; the shell of an allocation and a batch script lack it.
bool in_slurm_step(const Variables& env) {
  for (const char* name :
       {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"})
    if (env.has(name)) return env.has("SLURM_PROCID");
  return false;
}

int slurm_tasks(const Variables& env) {
  const auto step = env.number("SLURM_STEP_NUM_TASKS", 1);  // a step may have fewer tasks than its allocation
  return step ? *step : env.needed("SLURM_NTASKS", "though SLURM_PROCID is; start with srun", 1);
}

// Variables of torchrun inside a SLURM step: one torchrun per task, or exported by hand and then the same as SLURM's.
void check_against_slurm(const Variables& env, const Launch& launch) {
  if (!in_slurm_step(env)) return;
  const int tasks = slurm_tasks(env), task = env.needed("SLURM_PROCID", "");
  if (env.has("TORCHELASTIC_RUN_ID")) {
    const int machines = launch.world_size / launch.local_world_size;
    if (tasks > 1 && machines != tasks)
      fail("srun started " + std::to_string(tasks) + " tasks but torchrun counts " + std::to_string(machines) +
           " machines; use --ntasks-per-node=1 and torchrun --nnodes=" + std::to_string(tasks) +
           ", or srun without torchrun");
    return;
  }
  if (launch.rank != task || launch.world_size != tasks)
    fail(assign("RANK", launch.rank) + " " + assign("WORLD_SIZE", launch.world_size) + " disagree with " +
         assign("SLURM_PROCID", task) + " and " + std::to_string(tasks) +
         " SLURM tasks; unset RANK and WORLD_SIZE to go by SLURM");
}

Launch from_torchrun(const Variables& env) {
  Launch launch;
  launch.launcher = "torchrun";
  const char* partial = "though other variables of torchrun are; start with torchrun, or unset them to run alone";
  launch.rank = env.needed("RANK", partial);
  launch.world_size = env.needed("WORLD_SIZE", partial, 1);
  check_place("RANK", launch.rank, "WORLD_SIZE", launch.world_size);
  const bool alone = launch.world_size == 1;
  if (!alone || env.has("LOCAL_RANK")) launch.local_rank = env.needed("LOCAL_RANK", partial);
  if (!alone || env.has("LOCAL_WORLD_SIZE")) launch.local_world_size = env.needed("LOCAL_WORLD_SIZE", partial, 1);
  check_place("LOCAL_RANK", launch.local_rank, "LOCAL_WORLD_SIZE", launch.local_world_size);
  if (launch.local_world_size > launch.world_size)
    fail(assign("LOCAL_WORLD_SIZE", launch.local_world_size) + " but " + assign("WORLD_SIZE", launch.world_size) +
         "; a machine cannot hold more processes than there are");
  if (!alone || env.has("MASTER_PORT")) launch.master_port = master_port(env);
  const auto address = env.text("MASTER_ADDR");
  if ((!alone && !address) || (address && address->empty()))
    fail("MASTER_ADDR is not set; set it to the machine of rank 0");
  if (address) launch.master_addr = *address;
  launch.store_exists = env.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (const auto id = env.text("TORCHELASTIC_RUN_ID")) launch.job = "torchrun " + *id;
  check_against_slurm(env, launch);
  return launch;
}

// "2(x3),1" -> tasks on node `node`: 2, 2, 2, 1. 0 if the text does not say.
int tasks_on_node(const std::string& text, int node) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    const size_t repeat = part.find("(x");
    const int tasks = std::atoi(part.c_str());
    node -= repeat == std::string::npos ? 1 : std::atoi(part.c_str() + repeat + 2);
    if (node < 0) return tasks;
    at = end + 1;
  }
  return 0;
}

int slurm_local_tasks(const Variables& env, int tasks) {
  for (const char* name : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"})
    if (const auto text = env.text(name))
      if (const int here = tasks_on_node(*text, env.number("SLURM_NODEID").value_or(0)); here > 0) return here;
  if (const auto here = env.number("SLURM_NTASKS_PER_NODE", 1)) return *here;
  if (env.number("SLURM_NNODES", 1).value_or(1) == 1) return tasks;
  fail("cannot tell how many tasks run on this machine; set SLURM_NTASKS_PER_NODE (srun --ntasks-per-node)");
}

std::string slurm_master(const Variables& env) {
  if (const auto address = env.text("MASTER_ADDR"); address && !address->empty()) return *address;
  // Rank 0 runs on the step's first machine; the one that called srun may be a login node.
  if (const auto nodes = env.text("SLURM_STEP_NODELIST")) return first_slurm_host(*nodes);
  if (const auto address = env.text("SLURM_LAUNCH_NODE_IPADDR"); address && !address->empty()) return *address;
  fail(
      "neither SLURM_STEP_NODELIST nor SLURM_LAUNCH_NODE_IPADDR is set; set MASTER_ADDR to the machine of "
      "task 0");
}

Launch from_slurm(const Variables& env) {
  Launch launch;
  launch.launcher = "slurm";
  launch.rank = env.needed("SLURM_PROCID", "");
  launch.world_size = slurm_tasks(env);
  check_place("SLURM_PROCID", launch.rank, "SLURM_NTASKS", launch.world_size);
  if (launch.world_size == 1) return launch;
  launch.local_rank = env.needed("SLURM_LOCALID", "though SLURM_PROCID is; start with srun");
  launch.local_world_size = slurm_local_tasks(env, launch.world_size);
  check_place("SLURM_LOCALID", launch.local_rank, "SLURM_NTASKS_PER_NODE", launch.local_world_size);
  launch.master_addr = slurm_master(env);
  if (const auto job = env.text("SLURM_JOB_ID"))
    launch.job = "slurm " + *job + "." + env.text("SLURM_STEP_ID").value_or("");
  if (env.has("MASTER_PORT")) {
    launch.master_port = master_port(env);
  } else {
    // Below the range from which the kernel hands out ports; steps of one job, which run side by side, differ.
    const int job = env.needed("SLURM_JOB_ID", "; set MASTER_PORT to a free port on the machine of task 0");
    launch.master_port = 15000 + (job % 15000 + env.number("SLURM_STEP_ID").value_or(0) * 17) % 15000;
  }
  return launch;
}

Launch place_from(const Variables& env) {
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
    if (env.has(name)) return from_torchrun(env);
  if (in_slurm_step(env)) return from_slurm(env);
  if (const auto tasks = env.number("SLURM_NTASKS", 1); tasks && *tasks > 1)
    fail(assign("SLURM_NTASKS", *tasks) +
         " but this process is no task of srun; start it with srun, or unset SLURM_NTASKS to run alone");
  return {};
}

}  // namespace

Launch launch_from_environment() {
  return launch_from_environment([](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    if (!value) return std::nullopt;
    return value;
  });
}

Launch launch_from_environment(const GetEnv& getenv) {
  const Variables env(getenv);
  Launch launch = place_from(env);
  launch.secret_file = env.text("MEMSIEVE_SECRET_FILE").value_or("");
  return launch;
}

std::string first_slurm_host(const std::string& node_list) {
  const size_t comma = node_list.find(','), bracket = node_list.find('[');
  if (comma == 0 || bracket == 0 || node_list.empty())
    fail("cannot read a host from the SLURM node list '" + node_list + "'; set MASTER_ADDR");
  if (bracket > comma || bracket == std::string::npos) return node_list.substr(0, comma);
  // "gpu[07-09,12]-x": the first number ends at '-', ',' or ']'; what follows the bracket belongs to the name.
  const size_t first_end = node_list.find_first_of("-,]", bracket), close = node_list.find(']', bracket);
  if (close == std::string::npos || first_end == bracket + 1)
    fail("cannot read a host from the SLURM node list '" + node_list + "'; set MASTER_ADDR");
  const size_t end = std::min(node_list.find(',', close), node_list.size());
  return node_list.substr(0, bracket) + node_list.substr(bracket + 1, first_end - bracket - 1) +
         node_list.substr(close + 1, end - close - 1);
}

}  // namespace memsieve::runtime
