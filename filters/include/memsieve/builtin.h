#pragma once
// The filters that come with memsieve.

#include <memsieve/filter.h>

namespace memsieve {

/// A registry that holds the built-in filters.
FilterRegistry builtin_filters();

}  // namespace memsieve
