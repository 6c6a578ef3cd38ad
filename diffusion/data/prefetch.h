#pragma once
// What the next steps need is made while this step runs: reading, decoding and drawing noise on a thread of their own.

#include <diffusion/data/lone_thread.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace memsieve::diffusion {

/// Calls `make(first)`, `make(first + 1)` ... `make(end - 1)` on one background thread and hands the results out in
/// that order. `make` must be a pure function of the index, so that results do not depend on when they were made; with
/// `ahead` 0 there is no thread and it is called when the result is asked for.
///
/// Where `make` needs something that comes to be only in time, `end` is what it can make so far, and `extend` moves it.
///
/// Memory: at most `ahead` results wait, one of them perhaps still being made. An exception of make(i) is thrown by
/// take(i), on the caller's thread; an index that is never taken never fails. One consumer only.
template <class T>
class Prefetcher {
 public:
  using Make = std::function<T(int64_t)>;

  Prefetcher(Make make, int64_t first, int64_t end, int64_t ahead)
      : make_(std::move(make)), ahead_(ahead), next_(first), made_(first), end_(end) {
    if (ahead_ > 0) worker_ = std::thread([this] { work(); });
  }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// Waits for the call of `make` that is under way, if any.
  ~Prefetcher() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    if (worker_.joinable()) worker_.join();
  }

  /// Result `index`, which must be the one after the last taken. Blocks until it is there. Throws what make(index)
  /// threw, and std::logic_error for any other index.
  T take(int64_t index) {
    if (index != next_ || index >= end())
      throw std::logic_error("Prefetcher: asked for " + std::to_string(index) + " where " + std::to_string(next_) +
                             " of " + std::to_string(end()) + " comes next");
    ++next_;
    if (ahead_ == 0) return make_(index);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty(); });
    Result result = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    changed_.notify_all();
    if (result.error) std::rethrow_exception(result.error);
    return std::move(result.value);
  }

  /// Results up to `end` may be made from now on; never fewer than before.
  void extend(int64_t end) {
    {
      const std::lock_guard lock(mutex_);
      end_ = std::max(end_, end);
    }
    changed_.notify_all();
  }

 private:
  struct Result {
    T value{};
    std::exception_ptr error;
  };

  int64_t end() {
    const std::lock_guard lock(mutex_);
    return end_;
  }

  void work() {
    compute_on_this_thread_alone();
    for (;; ++made_) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stop_ || (made_ < end_ && static_cast<int64_t>(ready_.size()) < ahead_); });
        if (stop_) return;
      }
      Result result;
      try {
        result.value = make_(made_);
      } catch (...) {
        result.error = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      ready_.push_back(std::move(result));
      changed_.notify_all();
    }
  }

  const Make make_;
  const int64_t ahead_;
  /// to be taken; the consumer's
  int64_t next_;
  /// being made; the worker's
  int64_t made_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Result> ready_;
  int64_t end_;
  bool stop_ = false;
  std::thread worker_;
};

}  // namespace memsieve::diffusion
