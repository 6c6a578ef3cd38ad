#pragma once
// What stands where nothing was measured. Private to the library.

#include <limits>

namespace memsieve {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace memsieve
