#pragma once
// Features by which rows are compared (Batch::likeness), at a width of our own. Private to the library.

#include <ATen/core/Tensor.h>

namespace memsieve {

/// Features of any width are brought to this one by a fixed random projection, which keeps angles about as they are
/// (Johnson and Lindenstrauss, 1984).
constexpr int64_t kLikenessWidth = 32;
/// features [B, F] of any dtype -> [B, kLikenessWidth] float32. The same for the same F everywhere.
at::Tensor project_likeness(const at::Tensor& features);

}  // namespace memsieve
