// What the environment says about this process, and what it may not say.
#include <memsieve/error.h>
#include <runtime/address.h>
#include <runtime/launch.h>

#include <catch2/catch.hpp>
#include <map>

namespace of_test_launch {

using namespace memsieve::runtime;
using Catch::Contains;

namespace {

using Environment = std::map<std::string, std::string>;

Launch launch(const Environment& variables) {
  return launch_from_environment([&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  });
}

Environment with(Environment base, const Environment& changes) {
  for (const auto& [name, value] : changes) {
    base.erase(name);
    if (value != "unset") base[name] = value;
  }
  return base;
}

void refuse(const Environment& variables, const std::string& part) {
  INFO(part);
  REQUIRE_THROWS_AS(launch(variables), memsieve::ConfigError);
  REQUIRE_THROWS_WITH(launch(variables), Catch::StartsWith("launch: ") && Contains(part) && !Contains("\n"));
}

const Environment kTorchrun{{"RANK", "5"},
                            {"WORLD_SIZE", "8"},
                            {"LOCAL_RANK", "1"},
                            {"LOCAL_WORLD_SIZE", "4"},
                            {"MASTER_ADDR", "node1"},
                            {"MASTER_PORT", "29500"}};
const Environment kSlurm{{"SLURM_PROCID", "5"},
                         {"SLURM_NTASKS", "8"},
                         {"SLURM_LOCALID", "1"},
                         {"SLURM_NTASKS_PER_NODE", "4"},
                         {"SLURM_STEP_ID", "0"},
                         {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                         {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"},
                         {"SLURM_JOB_ID", "123456"}};

}  // namespace

TEST_CASE("nothing set: one process alone") {
  const auto l = launch({});
  REQUIRE((l.rank == 0 && l.world_size == 1 && l.local_rank == 0 && l.local_world_size == 1));
  REQUIRE((l.launcher == "alone" && l.master_addr == "127.0.0.1" && l.master_port == 0));
  REQUIRE(launch({{"MASTER_ADDR", "node1"}, {"MASTER_PORT", "1234"}}).launcher == "alone");
}

TEST_CASE("torchrun") {
  const auto l = launch(kTorchrun);
  REQUIRE((l.rank == 5 && l.world_size == 8 && l.local_rank == 1 && l.local_world_size == 4));
  REQUIRE((l.launcher == "torchrun" && l.master_addr == "node1" && l.master_port == 29500));
  REQUIRE_FALSE(l.store_exists);
  REQUIRE(launch(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}})).store_exists);
  REQUIRE_FALSE(launch(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).store_exists);
  REQUIRE(launch({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).world_size == 1);
}

TEST_CASE("partial or contradictory variables of torchrun are refused") {
  refuse(with(kTorchrun, {{"RANK", "unset"}}), "RANK is not set");
  refuse({{"WORLD_SIZE", "2"}}, "RANK is not set");
  refuse(with(kTorchrun, {{"WORLD_SIZE", "unset"}}), "WORLD_SIZE is not set");
  refuse(with(kTorchrun, {{"LOCAL_RANK", "unset"}}), "LOCAL_RANK is not set");
  refuse(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "unset"}}), "LOCAL_WORLD_SIZE is not set");
  refuse(with(kTorchrun, {{"MASTER_ADDR", "unset"}}), "MASTER_ADDR is not set");
  refuse(with(kTorchrun, {{"MASTER_PORT", "unset"}}), "MASTER_PORT is not set");
  refuse(with(kTorchrun, {{"RANK", "8"}}), "RANK=8 but WORLD_SIZE=8");
  refuse(with(kTorchrun, {{"LOCAL_RANK", "4"}}), "LOCAL_RANK=4 but LOCAL_WORLD_SIZE=4");
  refuse(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "16"}}), "LOCAL_WORLD_SIZE=16 but WORLD_SIZE=8");
  refuse(with(kTorchrun, {{"MASTER_PORT", "65536"}}), "MASTER_PORT=65536");
  refuse(with(kTorchrun, {{"MASTER_PORT", "0"}}), "MASTER_PORT is '0'");
}

TEST_CASE("what is no number is refused") {
  for (const std::string bad : {"", "two", "2x", " 2", "-1", "1.5", "99999999999"})
    refuse(with(kTorchrun, {{"RANK", bad}}), "RANK is '" + bad + "'; it must be a whole number");
  refuse(with(kTorchrun, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE is '0'");
  refuse(with(kSlurm, {{"SLURM_PROCID", "x"}}), "SLURM_PROCID is 'x'");
}

TEST_CASE("SLURM") {
  const auto l = launch(kSlurm);
  REQUIRE((l.rank == 5 && l.world_size == 8 && l.local_rank == 1 && l.local_world_size == 4));
  REQUIRE((l.launcher == "slurm" && l.master_addr == "gpu07" && !l.store_exists));
  REQUIRE((l.master_port >= 15000 && l.master_port < 30000));
  REQUIRE(launch(with(kSlurm, {{"SLURM_PROCID", "2"}, {"SLURM_LOCALID", "2"}})).master_port == l.master_port);
  REQUIRE(launch(with(kSlurm, {{"SLURM_STEP_ID", "1"}})).master_port != l.master_port);
  REQUIRE(launch(with(kSlurm, {{"SLURM_STEP_NODELIST", "unset"}})).master_addr == "10.0.0.1");
  const auto own = launch(with(kSlurm, {{"MASTER_ADDR", "other"}, {"MASTER_PORT", "4000"}}));
  REQUIRE((own.master_addr == "other" && own.master_port == 4000));
  REQUIRE(launch(with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "6"}})).world_size == 6);
}

TEST_CASE("SLURM: tasks on this machine") {
  const auto base = with(kSlurm, {{"SLURM_NTASKS_PER_NODE", "unset"}, {"SLURM_NNODES", "3"}});
  const auto here = [&](const char* list, const char* node) {
    return launch(with(base, {{"SLURM_STEP_TASKS_PER_NODE", list}, {"SLURM_NODEID", node}})).local_world_size;
  };
  REQUIRE(here("4(x2)", "0") == 4);
  REQUIRE(here("3(x2),2", "2") == 2);
  REQUIRE(here("2,3(x2)", "1") == 3);
  REQUIRE(launch(with(base, {{"SLURM_NNODES", "1"}})).local_world_size == 8);
  refuse(base, "SLURM_NTASKS_PER_NODE");
}

TEST_CASE("SLURM: one task, batch scripts and allocation shells") {
  REQUIRE(launch({{"SLURM_NTASKS", "1"}, {"SLURM_JOB_ID", "7"}}).launcher == "alone");
  REQUIRE(launch({{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}}).world_size == 1);
  const std::string remedy = "SLURM_NTASKS=4 but this process is no task of srun";
  refuse({{"SLURM_NTASKS", "4"}, {"SLURM_JOB_ID", "7"}}, remedy);
  // A batch script has a task number of its own, but no step.
  refuse({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_JOB_ID", "7"}}, remedy);
}

TEST_CASE("partial or contradictory variables of SLURM are refused") {
  refuse(with(kSlurm, {{"SLURM_NTASKS", "unset"}}), "SLURM_NTASKS is not set");
  refuse(with(kSlurm, {{"SLURM_PROCID", "8"}}), "SLURM_PROCID=8 but SLURM_NTASKS=8");
  refuse(with(kSlurm, {{"SLURM_LOCALID", "unset"}}), "SLURM_LOCALID is not set");
  refuse(with(kSlurm, {{"SLURM_LOCALID", "4"}}), "SLURM_LOCALID=4 but SLURM_NTASKS_PER_NODE=4");
  refuse(with(kSlurm, {{"SLURM_JOB_ID", "unset"}}), "set MASTER_PORT");
  refuse(with(kSlurm, {{"SLURM_STEP_NODELIST", "unset"}, {"SLURM_LAUNCH_NODE_IPADDR", "unset"}}), "set MASTER_ADDR");
}

TEST_CASE("torchrun and SLURM together") {
  const auto both = with(kSlurm, kTorchrun);
  REQUIRE(launch(both).launcher == "torchrun");  // exported by hand, and the same
  refuse(with(both, {{"RANK", "0"}}), "RANK=0 WORLD_SIZE=8 disagree with SLURM_PROCID=5");
  refuse(with(both, {{"SLURM_NTASKS", "16"}}), "16 SLURM tasks");
  // One torchrun of four processes on each of two machines is right; two torchruns on one machine are not.
  const auto agents = with(both, {{"TORCHELASTIC_RUN_ID", "x"}, {"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "1"}});
  REQUIRE(launch(agents).rank == 5);
  refuse(with(agents, {{"SLURM_NTASKS", "8"}}), "srun started 8 tasks but torchrun counts 2 machines");
  // In a batch script without srun, SLURM's numbers say nothing about torchrun's processes.
  REQUIRE(launch(with(kTorchrun, {{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "0"}})).rank == 5);
}

TEST_CASE("what ranks of one run have in common comes from the launcher, and the secret from the user") {
  REQUIRE(launch({}).job.empty());
  REQUIRE(launch(kTorchrun).job.empty());  // started by hand
  REQUIRE(launch(with(kTorchrun, {{"TORCHELASTIC_RUN_ID", "x"}})).job == "torchrun x");
  REQUIRE(launch(kSlurm).job == "slurm 123456.0");
  REQUIRE(launch(with(kSlurm, {{"SLURM_PROCID", "2"}, {"SLURM_LOCALID", "2"}})).job == launch(kSlurm).job);
  REQUIRE(launch(with(kSlurm, {{"SLURM_STEP_ID", "1"}})).job != launch(kSlurm).job);
  for (const auto& base : {Environment{}, kTorchrun, kSlurm})
    REQUIRE(launch(with(base, {{"MEMSIEVE_SECRET_FILE", "/a/b"}})).secret_file == "/a/b");
}

TEST_CASE("ranks of one machine meet at loopback, others where their machine can be reached") {
  Launch here;
  here.world_size = here.local_world_size = 4;
  here.master_addr = "no.such.host.invalid";
  CHECK((listening_address(here) == "127.0.0.1" && store_address(here) == "127.0.0.1"));
  Launch apart = here;
  apart.local_world_size = 2;
  if (const auto out = reachable_address(apart)) CHECK(listening_address(apart) == *out);
  apart.rank = 2;
  CHECK(store_address(apart) == apart.master_addr);
  apart.master_addr = "localhost";  // as a machine's own name often is: this is rank 0's machine
  CHECK(store_address(apart) == listening_address(apart));
  if (const auto own = local_address_toward("192.0.2.1")) {
    apart.master_addr = *own;
    CHECK(listening_address(apart) == *own);
  }
  apart.store_exists = true;
  CHECK(store_address(apart) == apart.master_addr);
}

TEST_CASE("first host of a SLURM node list") {
  REQUIRE(first_slurm_host("gpu07") == "gpu07");
  REQUIRE(first_slurm_host("gpu07,gpu08") == "gpu07");
  REQUIRE(first_slurm_host("gpu[07-09,12],cpu1") == "gpu07");
  REQUIRE(first_slurm_host("gpu[3,5]") == "gpu3");
  REQUIRE(first_slurm_host("cpu1,gpu[3,5]") == "cpu1");
  REQUIRE(first_slurm_host("rack[2-3]-b,x") == "rack2-b");
  for (const std::string bad : {"", ",a", "[1-2]", "gpu[", "gpu[]"})
    REQUIRE_THROWS_AS(first_slurm_host(bad), memsieve::ConfigError);
}

}  // namespace of_test_launch
