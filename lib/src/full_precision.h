#pragma once
// A caller's loop may run under autocast or allow TF32; what the sieve computes itself stays float32. Private to
// the library.

#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace memsieve {

/// While one lives, autocast and TF32 are off on this thread.
class FullPrecision {
 public:
  FullPrecision() = default;
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
  at::NoTF32Guard no_tf32_;
};

}  // namespace memsieve
