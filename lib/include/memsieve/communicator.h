#pragma once
// The only thing memsieve needs of a distributed back end: gather one fixed-size record from every rank.

#include <ATen/core/Tensor.h>
#include <memsieve/export.h>

#include <memory>
#include <vector>

namespace memsieve {

/// A group of ranks. Implement it over whatever your loop uses; C10dComm and SoloComm are provided.
class MEMSIEVE_API Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  /// COLLECTIVE. `record` is a contiguous 1-d tensor of the same length and dtype on every rank, on the back end's
  /// device. Returns [size, length] in rank order. Must not synchronise the host with a GPU. Throws PeerError if a peer
  /// is gone.
  virtual at::Tensor all_gather(const at::Tensor& record) = 0;
};

/// One rank.
class MEMSIEVE_API SoloComm final : public Communicator {
 public:
  int64_t rank() const override { return 0; }
  int64_t size() const override { return 1; }
  at::Tensor all_gather(const at::Tensor& record) override;
};

/// `size` ranks that are threads of this process: for tests and for trying a distributed loop without launching it. A
/// rank that waits longer than `timeout_seconds` for its peers throws PeerError, so a hang becomes a failure.
MEMSIEVE_API std::vector<std::shared_ptr<Communicator>> make_thread_group(int64_t size, double timeout_seconds = 60);

}  // namespace memsieve
