#include <c10/util/hash.h>
#include <memsieve/error.h>
#include <runtime/run_token.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>
#include <vector>

namespace memsieve::runtime {

namespace {

using Bytes = std::vector<uint8_t>;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr size_t kBlock = 64, kDigits = 40;
constexpr milliseconds kLookAgain(50);

std::string sha1_hex(const std::string& text) {
  return c10::sha1(text).str();
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i < digits.size(); i += 2) bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string padded(const std::string& key, unsigned char with) {
  std::string pad(kBlock, static_cast<char>(with));
  for (size_t i = 0; i < key.size(); ++i) pad[i] = static_cast<char>(pad[i] ^ key[i]);
  return pad;
}

/// The same time for any two texts of one length.
bool equal(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  return difference == 0;
}

std::string read_secret(const std::string& path) {
  const std::string where = "launch: MEMSIEVE_SECRET_FILE " + path + ": ";
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode))
    throw ConfigError(where + "is no file that can be read; name one that holds a secret");
  if ((status.st_uid != 0 && status.st_uid != geteuid()) || (status.st_mode & 077) != 0)
    throw ConfigError(where + "others can read it or own it; make it yours alone with chmod 600");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in || text.str().empty()) throw ConfigError(where + "is empty or cannot be read; write a secret to it");
  return text.str();
}

class SealedStore final : public c10d::Store {
 public:
  SealedStore(c10::intrusive_ptr<c10d::Store> store, std::string token)
      : store_(std::move(store)), token_(std::move(token)) {}

  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<SealedStore>(store_->clone(), token_); }
  void set(const std::string& key, const Bytes& value) override { store_->set(key, seal(key, value)); }
  Bytes get(const std::string& key) override {
    const auto value = await(key, getTimeout());
    if (!value) fail(key);
    return *value;
  }
  Bytes compareSet(const std::string& key, const Bytes& expected, const Bytes& desired) override {
    const Bytes sealed = seal(key, desired);
    Bytes found = store_->compareSet(key, expected.empty() ? expected : seal(key, expected), sealed);
    for (int attempt = 0; attempt < 8; ++attempt) {
      if (const auto value = open(key, found)) return *value;
      found = store_->compareSet(key, found, sealed);  // a stranger's
    }
    fail(key);
  }
  bool check(const std::vector<std::string>& keys) override {
    if (!store_->check(keys)) return false;
    for (const auto& key : keys)
      if (!open(key, store_->get(key))) return false;
    return true;
  }
  void wait(const std::vector<std::string>& keys) override { wait(keys, getTimeout()); }
  void wait(const std::vector<std::string>& keys, const milliseconds& timeout) override {
    const auto deadline = Clock::now() + timeout;
    for (const auto& key : keys) {
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
      if (!await(key, std::max(left, milliseconds(1)))) fail(key);
    }
  }
  int64_t add(const std::string& key, int64_t value) override { return store_->add(key, value); }
  bool deleteKey(const std::string& key) override { return store_->deleteKey(key); }
  int64_t getNumKeys() override { return store_->getNumKeys(); }
  const milliseconds& getTimeout() const noexcept override { return store_->getTimeout(); }
  void setTimeout(const milliseconds& timeout) override { store_->setTimeout(timeout); }
  bool hasExtendedApi() const override { return false; }

 private:
  std::string code(const std::string& key, const Bytes& value) const {
    return hmac_sha1(token_, std::to_string(key.size()) + ":" + key + std::string(value.begin(), value.end()));
  }
  Bytes seal(const std::string& key, const Bytes& value) const {
    const std::string front = code(key, value);
    Bytes sealed(front.begin(), front.end());
    sealed.insert(sealed.end(), value.begin(), value.end());
    return sealed;
  }
  std::optional<Bytes> open(const std::string& key, const Bytes& sealed) const {
    if (sealed.size() < kDigits) return std::nullopt;
    Bytes value(sealed.begin() + kDigits, sealed.end());
    if (!equal(std::string(sealed.begin(), sealed.begin() + kDigits), code(key, value))) return std::nullopt;
    return value;
  }
  /// Until this run's value is there; nullopt if only a stranger's is. Throws what the store does if there is none.
  std::optional<Bytes> await(const std::string& key, milliseconds timeout) const {
    const auto deadline = Clock::now() + timeout;
    store_->wait({key}, timeout);
    for (;;) {
      if (auto value = open(key, store_->get(key))) return value;
      if (Clock::now() >= deadline) return std::nullopt;
      std::this_thread::sleep_for(kLookAgain);
    }
  }
  [[noreturn]] static void fail(const std::string& key) {
    throw PeerError("group: what stands in the store at " + key +
                    " is not of this run; let nobody else reach the port of rank 0, or set another MASTER_PORT");
  }

  c10::intrusive_ptr<c10d::Store> store_;
  std::string token_;
};

}  // namespace

std::string hmac_sha1(const std::string& key, const std::string& text) {
  const std::string fitting = key.size() > kBlock ? from_hex(sha1_hex(key)) : key;
  return sha1_hex(padded(fitting, 0x5c) + from_hex(sha1_hex(padded(fitting, 0x36) + text)));
}

std::string run_token(const Launch& launch) {
  const std::string secret = launch.secret_file.empty() ? "" : read_secret(launch.secret_file);
  return hmac_sha1(secret, "memsieve run " + launch.job);
}

c10::intrusive_ptr<c10d::Store> sealed_store(const c10::intrusive_ptr<c10d::Store>& store, const std::string& token) {
  const auto own = c10::make_intrusive<c10d::PrefixStore>("memsieve/" + hmac_sha1(token, "name"), store);
  return c10::make_intrusive<SealedStore>(own, token);
}

}  // namespace memsieve::runtime
