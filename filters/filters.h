#pragma once
// One declaration for each built-in filter; builtin.cpp lists them.

#include <memsieve/filter.h>

namespace memsieve {

FilterEntry magnitude_filter();
FilterEntry prediction_error_filter();

}  // namespace memsieve
