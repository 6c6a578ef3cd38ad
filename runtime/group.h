#pragma once
// The ranks of this run: a TCPStore to meet at, Gloo for tensors on the CPU and, with a CUDA device, NCCL for those on
// the GPU.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>
#include <memsieve/communicator.h>
#include <runtime/launch.h>
#include <runtime/quiet_c10d.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace c10d {
class Backend;
class ProcessGroup;
class Store;
}  // namespace c10d

namespace memsieve::runtime {

struct GroupOptions {
  /// how long to wait at the start: for the store, for every peer to come, and for the first connections to them
  double rendezvous_seconds = 300;
  /// how long one collective may take before it counts as a peer's failure
  double collective_seconds = 1800;
};

/// What to wait where the user says nothing: 60 s under torchrun, whose agents have met before they start ranks,
/// else 300.
double default_rendezvous_seconds(const Launch& launch);

/// Where this rank should train. `wish` "auto": its own GPU, or the CPU where no GPU is visible; "cpu"; "cuda": its own
/// GPU. ConfigError if the visible GPUs are too few for this machine's ranks; a task of SLURM that sees a single one
/// has it for itself.
c10::Device choose_device(const Launch& launch, const std::string& wish);
/// The same where this process sees `gpus` GPUs.
c10::Device choose_device(const Launch& launch, const std::string& wish, int gpus);

/// All ranks of the run; one rank is a group of one, through the same code. Every failure of a peer or of the network
/// is thrown as PeerError with one line. The process ignores SIGPIPE from then on, unless it has a handler of its own.
class Group {
 public:
  /// COLLECTIVE. Meets the peers. `device` is where gradients live: a CPU or this rank's CUDA device. Throws
  /// ConfigError if the port is taken by something else, if ranks disagree on the world size or two claim one rank, or
  /// if only some of them have a GPU; PeerError naming the ranks that did not come in time.
  Group(const Launch& launch, c10::Device device, const GroupOptions& options = {});
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return launch_.rank; }
  int world_size() const { return launch_.world_size; }
  const Launch& launch() const { return launch_; }
  c10::Device device() const { return device_; }

  /// The back end for tensors on `device()`. To copy it, include torch/csrc/distributed/c10d/Backend.hpp.
  const c10::intrusive_ptr<c10d::Backend>& backend() const;
  /// The same for the sieve, which gathers its records on `device()`. Outlives the group.
  std::shared_ptr<Communicator> communicator() const;
  /// Both back ends behind one process group: what c10d::Reducer wants.
  const c10::intrusive_ptr<c10d::ProcessGroup>& process_group() const;

  // Host-side agreements. They go over Gloo whatever the device is, so they never synchronise with a GPU.
  /// COLLECTIVE. Waits for all ranks.
  void barrier();
  /// COLLECTIVE. True on every rank if `value` is true on any: "has somebody been told to stop?"
  bool any(bool value);
  /// COLLECTIVE. Rank `root`'s text on every rank.
  std::string broadcast(const std::string& text, int root = 0);

  // Tensors: contiguous, the same shape and dtype on every rank, on the CPU or on `device()`. With NCCL the current
  // stream waits for the result, the host does not.
  /// COLLECTIVE. Overwrites `tensor` with that of rank `root`.
  void broadcast(const at::Tensor& tensor, int root = 0);
  /// COLLECTIVE. Overwrites `tensor` with the sum over ranks.
  void all_reduce_sum(const at::Tensor& tensor);

 private:
  void require_same_kind();
  const c10::intrusive_ptr<c10d::Backend>& backend_for(const at::Tensor& tensor) const;

  Launch launch_;
  c10::Device device_;
  /// of the rank that serves the store
  std::unique_ptr<QuietC10d> quiet_server_;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<c10d::Backend> host_backend_, backend_;
  c10::intrusive_ptr<c10d::ProcessGroup> process_group_;
};

/// True if `error`, caught around a backward or a collective, came from the network or from a peer and not from this
/// rank's own computation: such an error should end the run as PeerError does.
bool is_peer_failure(const std::exception& error);
/// One line fit for a PeerError: `where`, and the first line of what c10d said without its file names and stack.
std::string peer_failure_line(const std::string& where, const std::exception& error);

}  // namespace memsieve::runtime
