#pragma once
// Communicator over torch's own process groups (Gloo, NCCL). The only public header that names c10d.

#include <c10/util/intrusive_ptr.h>
#include <memsieve/communicator.h>
#include <memsieve/export.h>

namespace c10d {
class Backend;
}

namespace memsieve {

/// Ranks of a c10d back end (ProcessGroupGloo, ProcessGroupNCCL, ...), which it keeps alive.
class MEMSIEVE_API C10dComm final : public Communicator {
 public:
  explicit C10dComm(c10::intrusive_ptr<c10d::Backend> backend);
  ~C10dComm() override;
  int64_t rank() const override;
  int64_t size() const override;
  /// COLLECTIVE. With NCCL the current stream waits for the result; the host does not. What the back end throws becomes
  /// the cause of a PeerError.
  at::Tensor all_gather(const at::Tensor& record) override;

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
};

}  // namespace memsieve
