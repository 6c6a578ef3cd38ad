#pragma once
// Who am I, and who are my peers: read from the environment that torchrun, SLURM or nobody has set.

#include <functional>
#include <optional>
#include <string>

namespace memsieve::runtime {

/// This process's place in the run. The same code path serves one process and many.
struct Launch {
  int rank = 0;
  int world_size = 1;
  /// place on this machine: which GPU to use
  int local_rank = 0;
  /// processes of this run on this machine
  int local_world_size = 1;
  /// where rank 0 can be reached
  std::string master_addr = "127.0.0.1";
  /// 0 = any free port (alone only)
  int master_port = 0;
  /// "torchrun", "slurm" or "alone"
  std::string launcher = "alone";
  /// torchrun's agent serves the store at master_addr:master_port, not rank 0
  bool store_exists = false;
  /// the launcher's name of this job: torchrun's run id, or SLURM's job and step; "" if there is none
  std::string job = {};
  /// file with a secret that all ranks have, or ""
  std::string secret_file = {};
};

/// Looks a variable up; nullopt = not set. An empty value counts as set.
using GetEnv = std::function<std::optional<std::string>(const char* name)>;

/// Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT (torchrun); else, in a step that srun
/// started, SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_NTASKS_PER_NODE, the first host of SLURM_STEP_NODELIST or
/// else SLURM_LAUNCH_NODE_IPADDR, and a port made from SLURM_JOB_ID (MASTER_ADDR and MASTER_PORT win over these two);
/// else one process alone. MEMSIEVE_SECRET_FILE names a secret that all ranks share (run_token.h). Throws ConfigError
/// for values that are missing, no numbers or contradict each other; it says what to set.
Launch launch_from_environment();
/// The same from any source of variables.
Launch launch_from_environment(const GetEnv& getenv);

/// First host of a SLURM node list: "gpu[07-09,12],cpu1" -> "gpu07". Throws ConfigError if there is none.
std::string first_slurm_host(const std::string& node_list);

}  // namespace memsieve::runtime
