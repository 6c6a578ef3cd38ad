#pragma once
// Catch2 3 under the names of Catch2 2, which the tests are written in; on the include path only where 3 is installed.
#include <catch2/catch_all.hpp>

namespace Catch {
using Matchers::ContainsSubstring;
using Matchers::Equals;
using Matchers::StartsWith;
}  // namespace Catch
using Catch::Approx;
#define Contains ContainsSubstring  // NOLINT: 3 gave the old name to another matcher
