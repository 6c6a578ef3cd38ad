#pragma once
// A filter whose score is one signal as it is.

#include <memsieve/filter.h>

#include <string>

namespace memsieve {

/// The filter of the signal of that name, with the option `timestep_min`.
FilterEntry signal_filter(const std::string& name, const std::string& doc);

}  // namespace memsieve
