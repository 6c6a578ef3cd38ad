#pragma once
// The filters that come with memsieve.

#include <memsieve/export.h>
#include <memsieve/filter.h>

namespace memsieve {

/// A registry that holds the built-in filters.
MEMSIEVE_API FilterRegistry builtin_filters();

}  // namespace memsieve
