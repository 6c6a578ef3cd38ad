#pragma once
// torch's own warnings as lines of our log.

namespace memsieve::runtime {

/// From now on, on this thread. Left out: the reducer's remark on gradients whose strides differ from their parameter's
/// only in dimensions of size 1, as those of 1x1 convolutions do; it costs nothing here.
void route_torch_warnings();

}  // namespace memsieve::runtime
