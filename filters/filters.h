#pragma once
// One declaration for each built-in filter; builtin.cpp lists them.

#include <memsieve/filter.h>

namespace memsieve {

FilterEntry magnitude_filter();
FilterEntry prediction_error_filter();
FilterEntry start_gap_filter();
FilterEntry caption_gain_filter();
FilterEntry guidance_gap_filter();
FilterEntry selective_backprop_filter();

}  // namespace memsieve
