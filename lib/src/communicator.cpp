#include <ATen/ATen.h>
#include <memsieve/communicator.h>
#include <memsieve/error.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace memsieve {

at::Tensor SoloComm::all_gather(const at::Tensor& record) {
  return record.unsqueeze(0).clone();
}

namespace {

/// One meeting point for all threads of a group: everybody puts a record in, nobody leaves before all have taken
/// a copy.
struct Meeting {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<at::Tensor> records;
  int64_t arrived = 0, leaving = 0;
  double timeout_seconds;
};

class ThreadComm final : public Communicator {
 public:
  ThreadComm(std::shared_ptr<Meeting> meeting, int64_t rank) : meeting_(std::move(meeting)), rank_(rank) {}
  int64_t rank() const override { return rank_; }
  int64_t size() const override { return static_cast<int64_t>(meeting_->records.size()); }

  at::Tensor all_gather(const at::Tensor& record) override {
    std::unique_lock lock(meeting_->mutex);
    wait(lock, [&] { return meeting_->leaving == 0; });
    meeting_->records[rank_] = record.clone();  // its owner may reuse it before the slowest peer has read it
    if (++meeting_->arrived == size()) {
      meeting_->leaving = size();
      meeting_->changed.notify_all();
    }
    wait(lock, [&] { return meeting_->leaving > 0; });
    at::Tensor all = at::stack(meeting_->records);
    if (--meeting_->leaving == 0) {
      meeting_->arrived = 0;
      meeting_->changed.notify_all();
    }
    return all;
  }

 private:
  template <typename Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition condition) {
    const auto limit = std::chrono::duration<double>(meeting_->timeout_seconds);
    if (!meeting_->changed.wait_for(lock, limit, condition)) {
      throw PeerError("rank " + std::to_string(rank_) + ": waited " + std::to_string(meeting_->timeout_seconds) +
                      " s for its peers; one of them did not take part in the gather");
    }
  }
  std::shared_ptr<Meeting> meeting_;
  int64_t rank_;
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> make_thread_group(int64_t size, double timeout_seconds) {
  auto meeting = std::make_shared<Meeting>();
  meeting->records.resize(size);
  meeting->timeout_seconds = timeout_seconds;
  std::vector<std::shared_ptr<Communicator>> group;
  for (int64_t rank = 0; rank < size; ++rank) group.push_back(std::make_shared<ThreadComm>(meeting, rank));
  return group;
}

}  // namespace memsieve
