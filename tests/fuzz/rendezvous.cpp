// What strangers write to the store at which ranks meet, between what the ranks write: a rank reads its own values or
// none at all.
#include <memsieve/error.h>
#include <runtime/run_token.h>

#include <chrono>
#include <map>
#include <set>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "fuzz_input.h"

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;

const std::string kKeys[] = {"claims/0", "world/0", "invitation", "gloo/0"};

/// The store under the seal, which tells the full name and the value of a key that is written to it.
class Watched : public c10d::HashStore {
 public:
  void set(const std::string& key, const std::vector<uint8_t>& value) override {
    last_key = key;
    c10d::HashStore::set(key, value);
  }
  std::string last_key;
};

std::vector<uint8_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

class Play {
 public:
  explicit Play(fuzz::Input& input) : input_(input), server_(c10::make_intrusive<Watched>()) {
    server_->setTimeout(std::chrono::milliseconds(-1));  // what is not there is not waited for
    rank_ = memsieve::runtime::sealed_store(server_, "the run's token");
    rank_->set("name", "");
    prefix_ = server_->last_key.substr(0, server_->last_key.size() - std::string("name").size());
  }

  void go_on() {
    const std::string& key = input_.PickValueInArray(kKeys);
    switch (input_.ConsumeIntegralInRange(0, 6)) {
      case 0:
        return stranger_writes(key);
      case 1:
        server_->deleteKey(prefix_ + key);
        return;
      case 2:
        return rank_writes(key);
      case 3:
        return rank_claims(key);
      case 4:
        if (rank_->check({key})) believe(key, rank_->get(key));
        return;
      default:
        return rank_reads(key);
    }
  }

 private:
  void stranger_writes(const std::string& key) {
    std::string value = input_.ConsumeRandomLengthString(80);
    if (input_.ConsumeBool()) {  // what stands at this or another place, perhaps with something behind it or in it
      const std::string from = prefix_ + input_.PickValueInArray(kKeys);
      std::string seen = server_->check({from}) ? server_->get_to_str(from) : "";
      if (!seen.empty() && !value.empty()) seen[static_cast<unsigned char>(value[0]) % seen.size()] ^= 1;
      value = seen + value;
    }
    server_->set(prefix_ + key, bytes_of(value));
  }
  void rank_writes(const std::string& key) {
    const std::string value = input_.ConsumeRandomLengthString(20);
    written_[key].insert(value);
    rank_->set(key, bytes_of(value));
  }
  void rank_claims(const std::string& key) {
    const std::string value = input_.ConsumeRandomLengthString(20);
    written_[key].insert(value);
    fuzz::refused<memsieve::PeerError>([&] { believe(key, rank_->compareSet(key, {}, bytes_of(value))); });
  }
  void rank_reads(const std::string& key) {
    if (!server_->check({prefix_ + key})) return;  // c10d's own error
    fuzz::refused<memsieve::PeerError>([&] { believe(key, rank_->get(key)); });
  }
  void believe(const std::string& key, const std::vector<uint8_t>& value) const {
    const auto found = written_.find(key);
    fuzz::require(found != written_.end() && found->second.count(std::string(value.begin(), value.end())) > 0,
                  "a rank reads at " + key + " what a rank has written there");
  }

  fuzz::Input& input_;
  c10::intrusive_ptr<Watched> server_;
  Store rank_;
  std::string prefix_;
  std::map<std::string, std::set<std::string>> written_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  Play play(input);
  for (int step = 0; step < 64 && input.remaining_bytes() > 0; ++step) play.go_on();
  return 0;
}
