#pragma once
// Own reader and writer of the safetensors format: 8 bytes little-endian header length, JSON header, raw tensors.
// Format: https://huggingface.co/docs/safetensors

#include <ATen/core/Tensor.h>
#include <memsieve/detail/printable.h>

#include <map>
#include <string>

namespace memsieve::diffusion {

using detail::in_quotes;
using detail::printable;

using TensorMap = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

/// Reads all tensors of a file to the CPU: F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL. DataError naming file and
/// tensor for anything wrong: truncated, offsets that overlap, leave holes, lie outside the file or do not fit the
/// shape, unknown dtype, a key twice. Memory is only ever asked for what the file really holds. `metadata`, if given,
/// receives __metadata__.
TensorMap load_safetensors(const std::string& path, Metadata* metadata = nullptr);

/// "[4, 64, 64]".
std::string in_brackets(at::IntArrayRef shape);

/// Writes to a temporary name in the same folder, fsyncs, renames: `path` is the old file or the whole new one.
/// Tensors may lie on any device (one copy to the host each). DataError if it cannot be written or a dtype is not in
/// the list above.
void save_safetensors(const std::string& path, const TensorMap& tensors, const Metadata& metadata = {});

}  // namespace memsieve::diffusion
