// The promise of `threshold.kind: rate`: how many visits of ordinary samples the recommended rule drops, counted on
// scores that are made up, so that what is ordinary is known.
#include <support/toy.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_false_drop_rate {

// Simulations, which take many minutes under sanitizers and reach no code that other tests do not.
#ifndef __SANITIZE_ADDRESS__

using memsieve::Sieve;

namespace {

constexpr int64_t kPictures = 64, kCopies = 40, kFeatures = 32;

/// What the scores are like. All in units of what single visits of one held-out picture differ by.
struct World {
  int64_t samples = 10000, rows = 1024, epochs = 20;
  /// share of the samples that are copies, forty of a picture
  double repeated = 0;
  /// variance of ordinary samples' own lasting scores, and of held-out pictures'
  double spread = 3, held_out_spread = 0;
  /// noise of Student's t with five degrees of freedom instead of normal, its 1.4826 MAD being 1 as well
  bool heavy = false;
  /// of the 64 held-out pictures, those that behave like repeated ones
  int64_t bad_pictures = 0;
  /// by which all training samples rise within the first fifth of the run
  double drift = 0;
  /// all scores of training samples grow from nothing within that time, as those of adapters do
  bool grow = false;
  uint64_t seed = 17;
};

/// Of visits to ordinary and to repeated samples the share that had no weight; of the last third, too.
struct Outcome {
  double ordinary = 0, late = 0, repeated = 0;
};

class Run {
 public:
  explicit Run(const World& world) : w_(world), g_(at::detail::createCPUGenerator(world.seed)) {
    lasting_ = normal(w_.samples) * std::sqrt(w_.spread);
    pictures_ = normal(kPictures) * std::sqrt(w_.held_out_spread);
    pictures_.slice(0, 0, w_.bad_pictures).fill_(8);
    copies_ = static_cast<int64_t>(std::llround(w_.repeated * static_cast<double>(w_.samples)));
    features_ = at::randn({w_.samples, kFeatures}, g_);
    // The first samples are the copies.
    const auto first = at::arange(copies_).div(kCopies, "floor").mul(kCopies);
    features_.slice(0, 0, copies_) = features_.index_select(0, first) + 0.1 * at::randn({copies_, kFeatures}, g_);
  }

  /// `pass_over`: flagged samples leave the batch.
  Outcome train(Sieve& sieve, bool pass_over);

 private:
  at::Tensor normal(int64_t n) { return at::randn({n}, g_); }
  at::Tensor noise(int64_t n) {
    if (!w_.heavy) return normal(n);
    const auto chi = at::randn({n, 5}, g_).square().sum(1);
    return normal(n) / at::sqrt(chi / 5) / 1.0774;
  }
  /// Rows whose start_gap at timestep t is `gap`, scaled as that timestep has it.
  memsieve::Batch batch_of(const at::Tensor& ids, const at::Tensor& gap, const at::Tensor& t) const;
  memsieve::Batch training_batch(const at::Tensor& ids, double progress);
  void count(const std::vector<int64_t>& ids, const at::Tensor& dropped, bool late);

  World w_;
  at::Generator g_;
  at::Tensor lasting_, pictures_, features_;
  int64_t copies_ = 0;
  /// [late][repeated]: visits, and those without a weight
  double visits_[2][2] = {}, dropped_[2][2] = {};
};

memsieve::Batch Run::batch_of(const at::Tensor& ids, const at::Tensor& gap, const at::Tensor& t) const {
  const auto raw = (0.1 + 0.1 * t.to(at::kFloat) / 1000) * gap;
  auto batch = toy::scripted(ids, t, (-raw).exp(), at::zeros_like(raw));
  const auto start = batch.target + 1;  // of error 1
  batch.counterfactuals["start"] = [start](const at::Tensor& rows) { return start.index_select(0, rows); };
  return batch;
}

memsieve::Batch Run::training_batch(const at::Tensor& ids, double progress) {
  const int64_t n = ids.size(0);
  const auto learned = at::where(ids < copies_, at::full({}, 8 * std::min(1.0, 4 * progress)), at::zeros({}));
  const double begun = std::min(1.0, 5 * progress);
  const auto gap = lasting_.index_select(0, ids) + noise(n) + learned + w_.drift * begun;
  auto batch = batch_of(ids, w_.grow ? gap * begun : gap, at::randint(1000, {n}, g_, at::kLong));
  batch.likeness = features_.index_select(0, ids);
  return batch;
}

void Run::count(const std::vector<int64_t>& ids, const at::Tensor& dropped, bool late) {
  const auto flags = dropped.to(at::kBool).contiguous();
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool copy = ids[i] < copies_;
    visits_[late][copy] += 1;
    dropped_[late][copy] += flags.const_data_ptr<bool>()[i] ? 1 : 0;
  }
}

Outcome Run::train(Sieve& sieve, bool pass_over) {
  const int64_t visits = w_.samples * w_.epochs;
  std::vector<int64_t> order;
  for (int64_t step = 0, seen = 0; seen < visits; ++step) {
    const double progress = static_cast<double>(seen) / static_cast<double>(visits);
    const bool late = progress > 2.0 / 3;
    const auto flagged = pass_over ? sieve.flagged(step) : at::zeros({w_.samples}, at::kBool);
    std::vector<int64_t> ids, passed;
    while (static_cast<int64_t>(ids.size()) < w_.rows) {
      if (order.empty()) {
        const auto next = at::randperm(w_.samples, g_, at::kLong);
        order.assign(next.const_data_ptr<int64_t>(), next.const_data_ptr<int64_t>() + w_.samples);
      }
      (flagged.const_data_ptr<bool>()[order.back()] ? passed : ids).push_back(order.back());
      order.pop_back();
    }
    seen += static_cast<int64_t>(ids.size() + passed.size());
    if (pass_over) sieve.pass_over(passed, {step, 0});
    const auto plan = sieve.inspect(training_batch(at::tensor(ids, at::kLong), progress), {step, 0});
    count(ids, plan.weight() == 0, late);
    count(passed, at::ones({static_cast<int64_t>(passed.size())}), late);
    std::vector<int64_t> held_out, looks;
    std::vector<double> times;
    for (const auto& visit : sieve.held_out_visits(step)) {
      held_out.push_back(visit.id);
      times.push_back(visit.timestep_fraction);
    }
    if (!held_out.empty()) {
      const auto rows = at::tensor(held_out, at::kLong);
      const auto t = (at::tensor(times, at::kDouble) * 1000).to(at::kLong);
      const auto gap = pictures_.index_select(0, rows.remainder(kPictures)) + noise(rows.size(0));
      sieve.observe(batch_of(rows, gap, t), {step, 0});
    }
    for (const auto& look : sieve.looks(step)) looks.push_back(look.id);
    if (!looks.empty()) sieve.look(training_batch(at::tensor(looks, at::kLong), progress), {step, 0});
    sieve.end_step({step, 0});
    sieve.take_reports();
  }
  const auto share = [&](int copy, bool late_alone) {
    const double from = late_alone ? 0 : visits_[0][copy], lost = late_alone ? 0 : dropped_[0][copy];
    return (lost + dropped_[1][copy]) / std::max(1.0, from + visits_[1][copy]);
  };
  return {share(0, false), share(0, true), share(1, false)};
}

/// The recommended rule, with as many more held-out rows and looks as there are more rows than 32;
/// or one of its other modes.
struct Mode {
  bool held_out = true, likeness = true;
  double spread = 3;
  /// flagged samples leave the batch and are looked at now and then
  bool pass_over = true;
  double probed = 0.125;
};

Outcome outcome_of(const World& world, const Mode& mode = {}) {
  const std::string rows = std::to_string(world.rows / 32);
  const std::string population = mode.held_out ? "held_out" : "training";
  const std::string yaml =
      "sieve: {filters: {start_gap: {}}, standardise: {by: timestep, population: " + population + ", " +
      (mode.held_out ? "bins: 3, window: 100" : "bins: 1, window: 64") +
      ", min_count: 10, clip: 8}, evidence: {kind: discounted, discount: 0.9, spread: " + std::to_string(mode.spread) +
      ", spread_alike: 0.1, min_visits: 1}, threshold: {kind: rate, false_drop_rate: 0.01}, action: {kind: drop, "
      "pass_over: " +
      (mode.pass_over ? "true}, revisit: {rows: " + rows + ", every: 1" : "false") +
      "}, probe: {kind: budget, fraction: " + std::to_string(mode.probed) +
      ", likeness: " + (mode.likeness ? "6" : "0") + "}, held_out: {rows: " + (mode.held_out ? rows : "0") +
      ", every: 1}}";
  auto setup = toy::setup(world.samples, world.rows);
  setup.held_out_size = kPictures;
  auto sieve = Sieve::from_text(yaml, "rule.yaml", std::make_shared<memsieve::SoloComm>(), setup);
  return Run(world).train(sieve, mode.pass_over);
}

}  // namespace

TEST_CASE("false_drop_rate: 0.01 holds for ordinary visits over a whole run", "[rate]") {
  const auto world =
      GENERATE(World{.samples = 100000, .repeated = 0.05}, World{}, World{.epochs = 60}, World{.repeated = 0.4},
               World{.epochs = 60, .repeated = 0.4}, World{.heavy = true}, World{.repeated = 0.05, .bad_pictures = 1});
  // Over so many epochs of so many samples likeness would take minutes; it has a shorter test of its own.
  const auto o = outcome_of(world, {.likeness = world.samples <= 10000});
  INFO(world.samples << " samples, " << world.epochs << " epochs, " << 100 * world.repeated
                     << "% repeated, heavy tails: " << world.heavy << ", bad pictures: " << world.bad_pictures
                     << "; dropped of ordinary visits " << o.ordinary << ", late " << o.late << ", of repeated ones "
                     << o.repeated);
  CHECK(o.ordinary > 0.003);
  CHECK(o.ordinary < 0.015);
  CHECK(o.late < 0.02);
  CHECK(o.repeated >= (world.repeated > 0 ? 0.6 : 0));
}

TEST_CASE("copies are found among a hundred thousand samples, too", "[rate]") {
  const auto o = outcome_of({.samples = 100000, .epochs = 2, .repeated = 0.05});
  INFO("dropped of ordinary visits " << o.ordinary << ", of repeated ones " << o.repeated);
  CHECK(o.ordinary < 0.015);
  CHECK(o.repeated > 0.85);
}

TEST_CASE("a set that is memorised as a whole is not dropped: its drift is taken up", "[rate]") {
  const auto o = outcome_of({.drift = 3});
  INFO("dropped " << o.ordinary << ", late " << o.late);
  CHECK(o.ordinary < 0.08);  // until enough of the samples were probed
  CHECK(o.late > 0.002);
  CHECK(o.late < 0.02);
}

TEST_CASE("without held-out pictures scores that grow together from nothing flag few, and those not for good",
          "[rate]") {
  const double drift = GENERATE(0, 3, 30);
  // In one run a single sample of the 96 is a hundredth, and which one depends on how a machine rounds.
  constexpr uint64_t runs = 6;
  Outcome mean;
  for (uint64_t seed = 1; seed <= runs; ++seed) {
    const auto o = outcome_of({.samples = 96, .rows = 32, .epochs = 60, .drift = drift, .grow = true, .seed = seed},
                              {.held_out = false, .spread = 1, .pass_over = false, .probed = 0.5});
    mean.ordinary += o.ordinary / runs;
    mean.late += o.late / runs;
  }
  INFO("drift " << drift << ": dropped " << mean.ordinary << ", late " << mean.late);
  CHECK(mean.ordinary < 0.06);
  CHECK(mean.late < 0.01);
}

TEST_CASE("held-out pictures that differ among themselves as ordinary samples do make the rule cautious", "[rate]") {
  CHECK(outcome_of({.held_out_spread = 1}).ordinary < 0.003);
}

TEST_CASE("without features repeated samples are found one by one, and no more ordinary ones are dropped", "[rate]") {
  const auto o = outcome_of({.repeated = 0.05}, {.likeness = false});
  INFO("dropped " << o.ordinary << ", late " << o.late << ", of repeated ones " << o.repeated);
  CHECK(o.ordinary > 0.003);
  CHECK(o.ordinary < 0.015);
  CHECK(o.repeated > 0.5);
}

TEST_CASE("without held-out pictures the rule is cautious, and finds copies that are no more than a fifth", "[rate]") {
  const auto [repeated, likeness, least] =
      GENERATE(table<double, bool, double>({{0, true, 0}, {0.05, true, 0.8}, {0.2, true, 0.5}, {0.05, false, 0.4}}));
  const auto o = outcome_of({.repeated = repeated}, {.held_out = false, .likeness = likeness, .spread = 1});
  WARN(repeated << " repeated: dropped " << o.ordinary << ", late " << o.late << ", of repeated ones " << o.repeated);
  CHECK(o.ordinary < 0.003);
  CHECK(o.repeated >= least);
}

#endif

}  // namespace of_test_false_drop_rate
