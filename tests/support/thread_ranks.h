#pragma once
// Runs one function on several ranks that are threads; a rank's exception is kept, not lost.

#include <memsieve/communicator.h>

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace toy {

/// what() of each rank's exception, "" where there was none.
inline std::vector<std::string> on_ranks(int64_t size,
                                         const std::function<void(std::shared_ptr<memsieve::Communicator>)>& body,
                                         double timeout_seconds = 20) {
  const auto group = memsieve::make_thread_group(size, timeout_seconds);
  std::vector<std::string> errors(size);
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(group[rank]);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}

}  // namespace toy
