#pragma once
// A filter whose score is one signal as it is.

#include <memsieve/filter.h>

#include <string>

namespace memsieve {

/// The filter of the signal of that name, with the option `timestep_min`. Rows of which the signal is nearer to 0 than
/// `least` count as not measured.
FilterEntry signal_filter(const std::string& name, const std::string& doc, double least = 0);

}  // namespace memsieve
