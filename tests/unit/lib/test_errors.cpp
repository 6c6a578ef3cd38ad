// Law 6: what goes wrong on one rank is thrown on all, naming the guilty one.
#include <memsieve/error.h>

#include <set>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_errors {

using Catch::Contains;
using memsieve::Sieve;
using toy::published;

namespace {

/// One optimiser step of this rank on its share of `step`, with `spoil` for what a test changes of a micro-batch; the
/// gradient is averaged over the ranks, as a loop does before end_step.
void train(Sieve& sieve, memsieve::Communicator& comm, const toy::Step& step, int64_t micro = 1,
           const std::function<void(memsieve::Batch&, int64_t)>& spoil = {}) {
  toy::Model model;
  const int64_t rows = step.ids.size(0) / comm.size() / micro;
  for (int64_t m = 0; m < micro; ++m) {
    const int64_t from = (m * comm.size() + comm.rank()) * rows;
    auto batch = toy::batch_of(model, step, from, from + rows);
    if (spoil) spoil(batch, m);
    sieve.inspect(batch, {0, 0}).loss(toy::per_sample_loss(batch)).backward();
  }
  comm.all_gather(model.weight.grad().reshape({-1}).contiguous());
  sieve.end_step({0, 0});
}

struct Thrower final : memsieve::Filter {
  Thrower(bool throws, bool number) : throws(throws), number(number) {}
  memsieve::Needs needs() const override { return {}; }
  at::Tensor score(const memsieve::SignalView& view) const override {
    if (throws && number) throw 42;
    if (throws) throw std::runtime_error("no luck today");
    return view.prediction_error;
  }
  bool throws, number;
};

}  // namespace

TEST_CASE("law 6: a filter's error on one rank is thrown on all, naming the guilty one", "[law]") {
  const bool number = GENERATE(false, true);  // what is thrown is no std::exception
  const auto errors = toy::on_ranks(4, [&](auto comm) {
    auto setup = toy::setup(50, 16, 4);
    const bool guilty = comm->rank() == 2;
    setup.filters.add(
        {"thrower", "", {}, [=](const memsieve::Settings&) { return std::make_unique<Thrower>(guilty, number); }});
    auto sieve = Sieve::from_text(
        "sieve: {filters: {thrower: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: "
        "{kind: fixed, drop: 5}}",
        "test", comm, setup);
    train(sieve, *comm, toy::make_step(16, 50, 1, 0));
  });
  for (const auto& error : errors) {
    if (number) {
      CHECK(error == "step 0: rank 2: unknown exception");
    } else {
      CHECK(error == "step 0: rank 2: filter thrower: no luck today");
    }
  }
}

TEST_CASE("law 6: a batch that breaks the contract on one rank is an error on all", "[law]") {
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 16, 2));
    auto step = toy::make_step(16, 50, 1, 0);
    if (comm->rank() == 1) step.ids[9] = 50;
    train(sieve, *comm, step);
  });
  for (const auto& error : errors) {
    CHECK_THAT(error, Contains("rank 1") && Contains("sample id 50 is out of range [0, 50)"));
  }
}

TEST_CASE("law 6: a null prediction that throws, on one rank or two, in any micro-batch, whatever it throws", "[law]") {
  const auto guilty = GENERATE(std::set<int64_t>{2}, std::set<int64_t>{1, 3});
  const int64_t where = GENERATE(0, 1);
  const bool number = GENERATE(false, true);
  const auto errors = toy::on_ranks(4, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 32, 4, 2));
    const int64_t rank = comm->rank();
    const auto spoil = [&](memsieve::Batch& batch, int64_t micro) {
      if (guilty.count(rank) == 0 || micro != where) return;
      batch.null_prediction = [number, rank](const at::Tensor&) -> at::Tensor {
        if (number) throw 42;
        throw std::runtime_error("no luck for " + std::to_string(rank));
      };
    };
    try {
      train(sieve, *comm, toy::make_step(32, 50, 1, 0), 2, spoil);
    } catch (const memsieve::PeerError& error) {
      if ((error.cause() != nullptr) != (guilty.count(rank) > 0)) throw std::runtime_error("wrong cause");
      throw;
    }
  });
  const std::string first = std::to_string(*guilty.begin());
  for (const auto& error : errors)
    CHECK(error == "step 0: rank " + first + ": " + (number ? "unknown exception" : "no luck for " + first));
}

TEST_CASE("law 6: a per-sample loss of the wrong shape on one rank is an error on all, after backward", "[law]") {
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 16, 2));
    toy::Model model;
    const auto batch = toy::batch_of(model, toy::make_step(16, 50, 1, 0), comm->rank() * 8, comm->rank() * 8 + 8);
    auto loss = toy::per_sample_loss(batch);
    if (comm->rank() == 1) loss = loss.unsqueeze(1);
    sieve.inspect(batch, {0, 0}).loss(loss).backward();
    comm->all_gather(model.weight.grad().reshape({-1}).contiguous());  // the peers wait for these
    sieve.end_step({0, 0});
  });
  for (const auto& error : errors)
    CHECK(error == "step 0: rank 1: batch: the per-sample loss must have the shape [8], one value a row");
}

TEST_CASE("ranks that end different steps are told so, all of them", "[law]") {
  const auto errors = toy::on_ranks(3, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 24, 3));
    const toy::Model model;
    const auto batch = toy::batch_of(model, toy::make_step(8, 50, 1, 0), 0, 8);
    const memsieve::Clock clock{comm->rank() == 2 ? 11 : 12, 0};
    sieve.inspect(batch, clock).loss(toy::per_sample_loss(batch));
    sieve.end_step(clock);
  });
  for (const auto& error : errors) CHECK_THAT(error, Contains("rank 2 ends step 11, but rank 0 step 12"));
}

TEST_CASE("an error of what is no std::exception has a line of its own", "[law]") {
  CHECK(memsieve::one_line(std::make_exception_ptr(42)) == "unknown exception");
  CHECK(memsieve::one_line(std::make_exception_ptr(memsieve::DataError("first\nsecond"))) == "first");
}

TEST_CASE("a message that is too long for a record ends between two characters", "[law]") {
  for (const int64_t before : {0, 1, 2, 3}) {  // one of them cuts through a character, wherever the record ends
    for (const std::string character : {"\u00e9", "\u4e2d", "\U0001f600", "\x80"}) {
      auto sieve = Sieve::from_text(published(2), "test", std::make_shared<memsieve::SoloComm>(), toy::setup(50, 8));
      std::string text(static_cast<size_t>(before), 'a');
      for (int i = 0; i < 300; ++i) text += character;
      sieve.fail(std::make_exception_ptr(std::runtime_error(text)));
      std::string what;
      try {
        sieve.end_step({0, 0});
      } catch (const memsieve::PeerError& error) {
        what = error.what();
      }
      const std::string head = "step 0: rank 0: ";
      CAPTURE(before, character, what);
      REQUIRE(what.substr(0, head.size()) == head);
      what = what.substr(head.size());
      CHECK(text.substr(0, what.size()) == what);
      CHECK((what.size() - static_cast<size_t>(before)) % character.size() == 0);
      CHECK(what.size() > 200);
    }
  }
}

}  // namespace of_test_errors
