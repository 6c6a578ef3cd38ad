#pragma once
// A filter whose score is one signal as it is.

#include <memsieve/filter.h>

#include <string>

namespace memsieve {

enum class Zero { is_a_score, is_no_score };

/// The filter of the signal of that name, with the option `timestep_min`. Zero::is_no_score: rows of which the signal
/// is exactly 0 count as not measured.
FilterEntry signal_filter(const std::string& name, const std::string& doc, Zero zero = Zero::is_a_score);

}  // namespace memsieve
