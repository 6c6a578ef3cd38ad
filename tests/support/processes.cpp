#include <ATen/Parallel.h>
#include <support/files.h>
#include <support/processes.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
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

std::map<std::string, std::function<void()>>& scenarios() {
  static std::map<std::string, std::function<void()>> all;
  return all;
}

/// Replaces what a launcher around the tests has set.
void set_environment(int rank, int ranks, int port, const std::string& argument, const std::string& folder) {
  std::vector<std::string> others;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string name(*entry, strcspn(*entry, "="));
    for (const char* start : {"SLURM_", "TORCHELASTIC_", "LOCAL_", "MASTER_"})
      if (name.rfind(start, 0) == 0) others.push_back(name);
  }
  for (const auto& name : others) unsetenv(name.c_str());
  const auto set = [](const char* name, const std::string& value) { setenv(name, value.c_str(), 1); };
  set("RANK", std::to_string(rank));
  set("WORLD_SIZE", std::to_string(ranks));
  set("LOCAL_RANK", std::to_string(rank));
  set("LOCAL_WORLD_SIZE", std::to_string(ranks));
  set("MASTER_ADDR", "127.0.0.1");
  set("MASTER_PORT", std::to_string(port));
  set("OMP_NUM_THREADS", "1");
  set("MEMSIEVE_ARGUMENT", argument);
  set("MEMSIEVE_SHARED", folder);
}

/// What a started rank does; never returns.
[[noreturn]] void run_scenario(const std::function<void()>& scenario, const std::string& output) {
  const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  dup2(file, 1);
  dup2(file, 2);
  at::set_num_threads(1);  // the parent may have read another number from its own environment
  int code = 1;
  try {
    scenario();
    code = 0;
  } catch (const std::exception& error) {
    std::cout << error.what() << std::endl;
  } catch (...) {  // a REQUIRE that failed has been reported
  }
  std::cout.flush();
  fflush(nullptr);
  _exit(code);
}

}  // namespace

Scenario::Scenario(const std::string& name, std::function<void()> body) {
  scenarios()[name] = std::move(body);
}

Result run(const std::string& scenario, int ranks, const std::string& argument, double seconds) {
  const memsieve::testing::TemporaryFolder folder;
  const int port = free_port();
  const auto& body = scenarios().at(scenario);
  std::cout.flush();
  fflush(nullptr);
  std::vector<pid_t> pids;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t pid = fork();
    if (pid == -1) throw std::runtime_error("fork failed");
    if (pid == 0) {
      set_environment(rank, ranks, port, argument, folder.path());
      run_scenario(body, folder.file("out" + std::to_string(rank)));
    }
    pids.push_back(pid);
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
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  for (int rank = 0; rank < ranks; ++rank)
    result.outputs.push_back(memsieve::testing::read_file(folder.file("out" + std::to_string(rank))));
  return result;
}

std::string argument() {
  return std::getenv("MEMSIEVE_ARGUMENT") == nullptr ? "" : std::getenv("MEMSIEVE_ARGUMENT");
}
std::string shared_folder() {
  return std::getenv("MEMSIEVE_SHARED") == nullptr ? "" : std::getenv("MEMSIEVE_SHARED");
}

}  // namespace processes
