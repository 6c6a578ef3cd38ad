// Numbers on their way to the host: each arrives once, in order, and on a CPU at once.
#include <ATen/ATen.h>
#include <trainer/metrics/mailbox.h>

#include <catch2/catch.hpp>

namespace of_test_mailbox {

using memsieve::trainer::Mailbox;

TEST_CASE("on a CPU letters arrive at once, oldest first, each once") {
  Mailbox mailbox(c10::kCPU, /*lag=*/2);
  CHECK(mailbox.take().empty());
  mailbox.push(7, at::tensor({1.0, 2.5}, at::kDouble));
  mailbox.push(8, at::tensor({-3.0}, at::kDouble));
  const auto letters = mailbox.take();
  REQUIRE(letters.size() == 2);
  CHECK(letters[0].step == 7);
  CHECK(letters[0].values == std::vector<double>{1.0, 2.5});
  CHECK(letters[1].step == 8);
  CHECK(letters[1].values == std::vector<double>{-3.0});
  CHECK(letters[0].arrived <= letters[1].arrived);
  CHECK(mailbox.take(/*all=*/true).empty());
  mailbox.push(9, at::tensor({0.0}, at::kDouble));
  CHECK(mailbox.take(/*all=*/true).size() == 1);
}

}  // namespace of_test_mailbox
