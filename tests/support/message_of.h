#pragma once
// What an error says.

#include <catch2/catch.hpp>
#include <string>

namespace memsieve::testing {

/// The message of the error of type E that `call` throws; fails the test if it throws nothing or another type.
template <class E, class F>
std::string message_of(F&& call) {
  try {
    call();
  } catch (const E& e) {
    CHECK(std::string(e.what()).find('\n') == std::string::npos);
    return e.what();
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace memsieve::testing
