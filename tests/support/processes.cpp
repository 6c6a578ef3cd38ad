#include <support/processes.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace processes {

namespace {

/// A port that is free now.
int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  socklen_t length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  close(fd);
  return ntohs(address.sin_port);
}

std::vector<std::string> environment_for(int rank, int ranks, int port, const std::string& argument,
                                         const std::string& folder) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const bool launcher = text.rfind("RANK=", 0) == 0 || text.rfind("WORLD_SIZE=", 0) == 0 ||
                          text.rfind("LOCAL_", 0) == 0 || text.rfind("MASTER_", 0) == 0 ||
                          text.rfind("SLURM_", 0) == 0 || text.rfind("TORCHELASTIC_", 0) == 0 ||
                          text.rfind("OMP_NUM_THREADS=", 0) == 0;
    if (!launcher) variables.push_back(text);
  }
  for (const auto& [name, value] : {std::pair{"RANK", rank},
                                    {"WORLD_SIZE", ranks},
                                    {"LOCAL_RANK", rank},
                                    {"LOCAL_WORLD_SIZE", ranks},
                                    {"MASTER_PORT", port},
                                    {"OMP_NUM_THREADS", 1}}) {
    variables.push_back(std::string(name) + "=" + std::to_string(value));
  }
  variables.push_back("MASTER_ADDR=127.0.0.1");
  variables.push_back("MEMSIEVE_ARGUMENT=" + argument);
  variables.push_back("MEMSIEVE_SHARED=" + folder);
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (auto& text : texts) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

pid_t start(const std::string& scenario, std::vector<std::string> environment, const std::string& output) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  std::vector<std::string> arguments{"/proc/self/exe", scenario};
  pid_t pid = -1;
  posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, pointers(arguments).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

}  // namespace

Result run(const std::string& scenario, int ranks, const std::string& argument, double seconds) {
  const std::string folder = std::filesystem::temp_directory_path() / ("memsieve-ranks-XXXXXX");
  std::string name = folder;
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
  const int port = free_port();
  std::vector<pid_t> pids;
  for (int rank = 0; rank < ranks; ++rank) {
    pids.push_back(
        start(scenario, environment_for(rank, ranks, port, argument, name), name + "/out" + std::to_string(rank)));
  }
  Result result;
  result.exit_codes.assign(ranks, -1);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (int left = ranks; left > 0;) {
    for (int rank = 0; rank < ranks; ++rank) {
      int status = 0;
      if (result.exit_codes[rank] != -1 || waitpid(pids[rank], &status, WNOHANG) <= 0) continue;
      result.exit_codes[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      --left;
    }
    if (std::chrono::steady_clock::now() > limit) {
      for (int rank = 0; rank < ranks; ++rank) {
        if (result.exit_codes[rank] != -1) continue;
        kill(pids[rank], SIGKILL);
        waitpid(pids[rank], nullptr, 0);
        result.exit_codes[rank] = 124;
        --left;
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (int rank = 0; rank < ranks; ++rank) {
    std::ostringstream text;
    text << std::ifstream(name + "/out" + std::to_string(rank)).rdbuf();
    result.outputs.push_back(text.str());
  }
  std::filesystem::remove_all(name);
  return result;
}

std::string argument() {
  return std::getenv("MEMSIEVE_ARGUMENT") == nullptr ? "" : std::getenv("MEMSIEVE_ARGUMENT");
}
std::string shared_folder() {
  return std::getenv("MEMSIEVE_SHARED") == nullptr ? "" : std::getenv("MEMSIEVE_SHARED");
}

}  // namespace processes
