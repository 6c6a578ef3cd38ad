#pragma once

namespace memsieve::runtime {

/// Lets malloc keep what is freed. By default glibc gives large blocks back to the system at once, and the next step's
/// activations, of the same sizes, are faulted in and zeroed page by page again: a tenth of a step's time on the CPU.
/// Call once, before the first tensor. Does nothing with other C libraries.
void keep_freed_memory();

}  // namespace memsieve::runtime
