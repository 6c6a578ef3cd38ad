// One rank's error ends all ranks at the same place, and every rank knows whose it was.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <support/process_ranks.h>

#include <catch2/catch.hpp>

namespace of_test_agreement {

using namespace memsieve;
using namespace memsieve::runtime;
using namespace memsieve::testing;

TEST_CASE("without an error all ranks go on") {
  const int ranks = GENERATE(1, 3);
  std::vector<int> worked(ranks);
  CHECK(run_groups(ranks, [&](Group& group) { on_all_ranks(group, [&] { ++worked[group.rank()]; }); }) ==
        no_errors(ranks));
  CHECK(worked == std::vector<int>(ranks, 1));
}

TEST_CASE("a rank that fails throws its own error, its peers one that names it") {
  const auto errors = run_groups(3, [](Group& group) {
    on_all_ranks(group, [&] {
      if (group.rank() == 1) throw ConfigError("run.yaml:3: seed: is wrong");
    });
  });
  CHECK(errors[1] == "ConfigError: run.yaml:3: seed: is wrong");
  for (const int peer : {0, 2}) CHECK(errors[peer] == "PeerError: rank 1 failed: run.yaml:3: seed: is wrong");
}

TEST_CASE("of several guilty ranks the peers name the first; an error may be empty or no std::exception") {
  const auto errors = run_groups(3, [](Group& group) {
    on_all_ranks(group, [&] {
      if (group.rank() == 1) throw DataError("");
      if (group.rank() == 2) throw ConfigError("second");
    });
  });
  CHECK(errors[0] == "PeerError: rank 1 failed: ");
  CHECK(errors[2] == "ConfigError: second");
  const auto odd = run_groups(2, [](Group& group) {
    try {
      on_all_ranks(group, [&] {
        if (group.rank() == 0) throw 42;
      });
    } catch (int) {
      throw DataError("a number");
    }
  });
  CHECK(odd[0] == "other: a number");
  CHECK(odd[1] == "PeerError: rank 0 failed: unknown error");
}

TEST_CASE("ranks that have agreed on an error can work on together") {
  const auto errors = run_groups(2, [](Group& group) {
    try {
      on_all_ranks(group, [&] {
        if (group.rank() == 0) throw DataError("once");
      });
    } catch (const Error&) {
      if (group.any(false)) throw DataError("nobody said so");
      return on_all_ranks(group, [] {});
    }
    throw DataError("no error");
  });
  CHECK(errors == no_errors(2));
}

}  // namespace of_test_agreement
