#include <ATen/ATen.h>
#include <memsieve/c10d_communicator.h>
#include <memsieve/error.h>
#include <runtime/address.h>
#include <runtime/group.h>
#include <runtime/nccl.h>
#include <runtime/quiet_c10d.h>
#include <runtime/rendezvous.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace memsieve::runtime {

namespace {

using Gloo = c10d::ProcessGroupGloo;

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// The interface that Gloo listens on: as told, else loopback if all ranks are here, else where the others can reach
// this machine; where its name points, which is torch's own choice, is loopback on many a Debian.
std::shared_ptr<::gloo::transport::Device> gloo_device(const Launch& launch) {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface && *interface) return Gloo::createDeviceForInterface(interface);
  if (launch.local_world_size == launch.world_size) return Gloo::createDeviceForHostname("127.0.0.1");
  if (const auto address = reachable_address(launch)) return Gloo::createDeviceForHostname(*address);
  return Gloo::createDefaultDevice();
}

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(const c10::intrusive_ptr<c10d::Store>& store, const Launch& launch,
                                                    double timeout_seconds) {
  auto options = Gloo::Options::create();
  options->timeout = milliseconds_of(timeout_seconds);
  options->devices.push_back(gloo_device(launch));
  return c10::make_intrusive<Gloo>(store, launch.rank, launch.world_size, options);
}

// Gloo writes to sockets without MSG_NOSIGNAL: by default SIGPIPE would end a process whose peer is gone.
void ignore_broken_pipes() {
  struct sigaction now {};
  if (sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) std::signal(SIGPIPE, SIG_IGN);
}

// Runs `start`, waits for its work, and turns what c10d throws into a PeerError.
template <typename Start>
void finish(const Launch& launch, const char* what, const Start& start) {
  try {
    start()->wait();
  } catch (const std::exception& error) {
    throw PeerError(peer_failure_line("rank " + std::to_string(launch.rank) + ": " + what, error));
  }
}

}  // namespace

double default_rendezvous_seconds(const Launch& launch) {
  return launch.launcher == "torchrun" ? 60 : 300;
}

c10::Device choose_device(const Launch& launch, const std::string& wish) {
  return choose_device(launch, wish, wish == "cpu" ? 0 : gpu_count());
}

c10::Device choose_device(const Launch& launch, const std::string& wish, int gpus) {
  if (wish == "cpu") return c10::kCPU;
  if (wish != "auto" && wish != "cuda") throw ConfigError("device: '" + wish + "' is none of auto, cpu and cuda");
  if (gpus >= launch.local_world_size) return {c10::kCUDA, static_cast<c10::DeviceIndex>(launch.local_rank)};
  // SLURM can show each task a GPU of its own and no other (--gpus-per-task).
  if (gpus == 1 && launch.launcher == "slurm") return {c10::kCUDA, 0};
  if (gpus == 0 && wish == "auto") return c10::kCPU;
  throw ConfigError("device: " + std::to_string(launch.local_world_size) + " processes on this machine but " +
                    std::to_string(gpus) + " visible GPUs; start " +
                    (gpus > 0 ? "at most " + std::to_string(gpus) : "where there are some") +
                    ", or train with device: cpu");
}

Group::Group(const Launch& launch, c10::Device device, const GroupOptions& options) : launch_(launch), device_(device) {
  ignore_broken_pipes();
  const QuietC10d quiet(Quiet::all);
  if (launch.rank == 0 && !launch.store_exists) quiet_server_ = std::make_unique<QuietC10d>(Quiet::warnings);
  store_ = meet(launch, options.rendezvous_seconds);
  process_group_ = c10::make_intrusive<c10d::ProcessGroup>(store_, rank(), world_size());
  try {
    const auto gloo_store = c10::make_intrusive<c10d::PrefixStore>("gloo", store_);
    host_backend_ = make_gloo_backend(gloo_store, launch, options.rendezvous_seconds);
    process_group_->setBackend(c10::kCPU, c10d::ProcessGroup::GLOO, host_backend_);
    backend_ = host_backend_;
    require_same_kind();
    host_backend_->setTimeout(milliseconds_of(options.collective_seconds));
    if (device.is_cuda()) {
      const auto nccl_store = c10::make_intrusive<c10d::PrefixStore>("nccl", store_);
      backend_ = make_nccl_backend(nccl_store, rank(), world_size(), device, options.collective_seconds);
      process_group_->setBackend(c10::kCUDA, c10d::ProcessGroup::NCCL, backend_);
    }
    process_group_->setDefaultBackend(device.is_cuda() ? c10d::ProcessGroup::NCCL : c10d::ProcessGroup::GLOO);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw PeerError(peer_failure_line("rank " + std::to_string(rank()) + ": connecting to the peers", error));
  }
  barrier();  // nobody needs the store after this, so rank 0 may end first
}

void Group::require_same_kind() {
  const bool cuda = device_.is_cuda();
  // Of ranks that disagree some would wait in NCCL and some here.
  const at::Tensor counts = at::tensor({cuda ? 1 : 0, cuda ? 0 : 1}, at::kLong);
  all_reduce_sum(counts);
  const auto* n = counts.const_data_ptr<int64_t>();
  if (n[0] == 0 || n[1] == 0) return;
  throw ConfigError("device: rank " + std::to_string(rank()) + " has " + (cuda ? "a GPU" : "none") +
                    ", but of all ranks " + std::to_string(n[0]) + " have one and " + std::to_string(n[1]) +
                    " have none; look for a machine that has lost its GPU or driver, or set device: cpu");
}

Group::~Group() {
  try {
    if (backend_ && device_.is_cuda()) backend_->shutdown();
  } catch (const std::exception&) {  // a peer has gone already; nothing is left to do for it
  }
}

const c10::intrusive_ptr<c10d::Backend>& Group::backend() const {
  return backend_;
}

const c10::intrusive_ptr<c10d::ProcessGroup>& Group::process_group() const {
  return process_group_;
}

std::shared_ptr<Communicator> Group::communicator() const {
  return std::make_shared<C10dComm>(backend_);
}

const c10::intrusive_ptr<c10d::Backend>& Group::backend_for(const at::Tensor& tensor) const {
  return tensor.is_cpu() ? host_backend_ : backend_;
}

void Group::barrier() {
  finish(launch_, "barrier", [&] { return host_backend_->barrier(); });
}

bool Group::any(bool value) {
  const at::Tensor flag = at::full({1}, value ? 1 : 0, at::kLong);
  all_reduce_sum(flag);
  return *flag.data_ptr<int64_t>() > 0;
}

std::string Group::broadcast(const std::string& text, int root) {
  const at::Tensor length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  broadcast(length, root);
  std::string result = text;
  result.resize(*length.data_ptr<int64_t>());
  if (result.empty()) return result;
  const at::Tensor bytes = at::empty({static_cast<int64_t>(result.size())}, at::kByte);
  std::memcpy(bytes.data_ptr(), result.data(), result.size());
  broadcast(bytes, root);
  std::memcpy(result.data(), bytes.data_ptr(), result.size());
  return result;
}

void Group::broadcast(const at::Tensor& tensor, int root) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  finish(launch_, "broadcast", [&] { return backend_for(tensor)->broadcast(tensors, options); });
}

void Group::all_reduce_sum(const at::Tensor& tensor) {
  std::vector<at::Tensor> tensors{tensor};
  finish(launch_, "all-reduce", [&] { return backend_for(tensor)->allreduce(tensors); });
}

bool is_peer_failure(const std::exception& error) {
  if (dynamic_cast<const PeerError*>(&error) || dynamic_cast<const c10::DistError*>(&error)) return true;
  const std::string text = error.what();
  // Gloo's exceptions are plain runtime errors that begin with the place in Gloo's sources.
  for (const char* mark : {"third_party/gloo", "gloo/transport", "NCCL", "Connection closed by peer",
                           "Connection reset by peer", "Broken pipe"})
    if (text.find(mark) != std::string::npos) return true;
  return false;
}

std::string peer_failure_line(const std::string& where, const std::exception& error) {
  std::string text = one_line(error);
  if (!text.empty() && text[0] == '[')  // "[/path/to/file.cc:81] Connection closed by peer ..."
    if (const size_t end = text.find("] "); end != std::string::npos) text = text.substr(end + 2);
  return where + ": a peer or the network failed: " + text;
}

}  // namespace memsieve::runtime
