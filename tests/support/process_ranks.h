#pragma once
// Ranks that are threads of the test: each with its own store client and process group, as processes would have.

#include <arpa/inet.h>
#include <memsieve/error.h>
#include <sys/socket.h>
#include <runtime/group.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace memsieve::testing {

using namespace runtime;

/// A TCP socket that listens at a port of the kernel's choice and never answers.
class DeafServer {
 public:
  DeafServer() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    ::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address);
    ::listen(socket_, 8);
    socklen_t size = sizeof address;
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  ~DeafServer() { ::close(socket_); }
  int port() const { return port_; }

 private:
  int socket_, port_ = 0;
};

inline int free_port() {
  return DeafServer().port();
}

inline Launch local_launch(int rank, int world_size, int port) {
  Launch launch;
  launch.rank = launch.local_rank = rank;
  launch.world_size = launch.local_world_size = world_size;
  launch.master_port = port;
  return launch;
}

inline GroupOptions impatient(double rendezvous_seconds = 30, double collective_seconds = 30) {
  return {rendezvous_seconds, collective_seconds};
}

/// c10d's flight recorder keeps a map of all of a process's groups without a lock (torch 2.11): of several threads that
/// begin at once one crashes in it now and then. It is off from the program's start, since it asks only once.
inline const bool kNoFlightRecorder = ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1) == 0;

/// Runs `body` in one thread per rank. Returns what each threw: "" or "ConfigError: ...", "PeerError: ...",
/// "other: ...".
inline std::vector<std::string> run_ranks(int world_size, const std::function<void(int rank)>& body) {
  std::vector<std::string> errors(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const ConfigError& error) {
        errors[rank] = std::string("ConfigError: ") + error.what();
      } catch (const PeerError& error) {
        errors[rank] = std::string("PeerError: ") + error.what();
      } catch (const std::exception& error) {
        errors[rank] = std::string("other: ") + error.what();
      }
    });
  for (auto& thread : threads) thread.join();
  return errors;
}

/// The same with a group for each rank.
inline std::vector<std::string> run_groups(int world_size, const std::function<void(Group& group)>& body) {
  const int port = free_port();
  return run_ranks(world_size, [&](int rank) {
    Group group(local_launch(rank, world_size, port), c10::kCPU, impatient());
    body(group);
  });
}

inline std::vector<std::string> no_errors(int world_size) {
  return std::vector<std::string>(world_size);
}

}  // namespace memsieve::testing
