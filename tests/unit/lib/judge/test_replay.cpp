// The judge without a model: the raw scores that a run recorded bring the run's own verdicts, bit for bit.
#include "judge/judge.h"

#include <ATen/ATen.h>
#include <hdf5.h>

#include "config/configuration.h"
#include "judge/held_out.h"
#include "record/ledger_file.h"

#include <support/files.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_replay {

using namespace memsieve;

namespace {

constexpr int64_t kSteps = 60, kRows = 16, kMicro = 2, kSamples = 40, kPictures = 6;

/// Columns of /visits, each [N] and in the ledger's order.
class Visits {
 public:
  explicit Visits(const std::string& path) : file_(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT)) {
    REQUIRE(file_ >= 0);
    data_ = H5Dopen2(file_, "visits", H5P_DEFAULT);
    const hid_t space = H5Dget_space(data_);
    rows_ = H5Sget_simple_extent_npoints(space);
    H5Sclose(space);
  }
  ~Visits() {
    H5Dclose(data_);
    H5Fclose(file_);
  }
  at::Tensor integers(const char* field) const { return read(field, at::kLong, H5T_NATIVE_INT64); }
  at::Tensor floats(const std::string& field) const { return read(field.c_str(), at::kFloat, H5T_NATIVE_FLOAT); }

 private:
  at::Tensor read(const char* field, at::ScalarType dtype, hid_t native) const {
    auto values = at::empty({rows_}, dtype);
    const hid_t type = H5Tcreate(H5T_COMPOUND, H5Tget_size(native));
    H5Tinsert(type, field, 0, native);
    REQUIRE(H5Dread(data_, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data_ptr()) >= 0);
    H5Tclose(type);
    return values;
  }
  hid_t file_, data_ = 0;
  int64_t rows_ = 0;
};

/// A data set of 40 samples, shown 16 a step in two micro-batches.
Setup setup_of_run() {
  Setup setup = toy::setup(kSamples, kRows, 1, kMicro);
  setup.held_out_size = kPictures;
  return setup;
}

void show_start_model(Sieve& sieve, const toy::Model& model) {
  for (int64_t draw = 0; draw < sieve.reference_draws(); ++draw) {
    for (const auto& [pictures, held_out] : {std::pair<int64_t, bool>{kSamples, false}, {kPictures, true}}) {
      auto step = toy::make_step(pictures, pictures, 9, draw);
      step.ids = at::arange(pictures);
      sieve.reference(toy::batch_of(model, step, 0, pictures), held_out);
    }
  }
  sieve.finish_reference();
}

/// Features of samples [n]: ten kinds of which each has four alike.
at::Tensor features(const at::Tensor& samples) {
  const auto kinds = at::randn({10, 40}, at::detail::createCPUGenerator(11));
  return kinds.index_select(0, samples.remainder(10));
}

/// With what the loop adds: captions, features, and the starting model's prediction, which two kinds have left behind.
memsieve::Batch visit_of(const toy::Model& model, const toy::Step& step, int64_t from, int64_t to) {
  auto batch = toy::batch_of(model, step, from, to);
  batch.has_caption = batch.sample_id % 7 != 3;
  batch.likeness = features(batch.sample_id);
  const auto gap = at::where(batch.sample_id.remainder(10) < 2, at::full({}, 2.0), at::full({}, 1.0)).unsqueeze(1);
  const auto start =
      batch.target + (batch.prediction.detach() - batch.target) * gap * (1 + 0.1 * step.x.slice(0, from, to));
  batch.counterfactuals["start"] = [start](const at::Tensor& rows) { return start.index_select(0, rows); };
  return batch;
}

void observe(Sieve& sieve, const toy::Model& model, int64_t s) {
  const auto visits = sieve.held_out_visits(s);
  if (visits.empty()) return;
  auto seen = toy::make_step(static_cast<int64_t>(visits.size()), kSamples, 8, s);
  for (size_t i = 0; i < visits.size(); ++i) {
    seen.ids[static_cast<int64_t>(i)] = visits[i].id;
    seen.t[static_cast<int64_t>(i)] = static_cast<int64_t>(visits[i].timestep_fraction * 1000);
  }
  auto batch = visit_of(model, seen, 0, seen.ids.size(0));
  batch.has_caption = at::Tensor();
  sieve.observe(batch, {s, 0});
}

/// Looks at what the sieve names, by the same model.
void look(Sieve& sieve, const toy::Model& model, int64_t s) {
  const auto looks = sieve.looks(s);
  if (looks.empty()) return;
  auto seen = toy::make_step(static_cast<int64_t>(looks.size()), kSamples, 6, s);
  for (size_t i = 0; i < looks.size(); ++i) seen.ids[static_cast<int64_t>(i)] = looks[i].id;
  sieve.look(visit_of(model, seen, 0, seen.ids.size(0)), {s, 0});
}

/// The step's samples, flagged ones passed over for the next that is not.
std::vector<int64_t> pass_over(const Sieve& sieve, toy::Step& step, int64_t s) {
  std::vector<int64_t> passed;
  const auto flagged = sieve.flagged(s);
  for (int64_t i = 0; i < step.ids.size(0); ++i) {
    auto id = step.ids[i].item<int64_t>();
    if (!flagged[id].item<bool>()) continue;
    passed.push_back(id);
    while (flagged[id].item<bool>()) id = (id + 1) % kSamples;
    step.ids[i] = id;
  }
  return passed;
}

/// Runs the sieve with a model, writing `ledger`; returns its state at the first step.
std::map<std::string, at::Tensor> run(const std::string& yaml, const std::string& ledger) {
  Setup setup = setup_of_run();
  setup.ledger_path = ledger;
  auto sieve = Sieve::from_text(yaml, "run.yaml", std::make_shared<SoloComm>(), setup);
  const toy::Model model;
  if (sieve.reference_draws() > 0) show_start_model(sieve, model);
  auto state = sieve.state();
  for (int64_t s = 0; s < kSteps; ++s) {
    auto step = toy::make_step(kRows, kSamples, 7, s);
    const auto passed = pass_over(sieve, step, s);
    if (!passed.empty()) sieve.pass_over(passed, {s, 0});
    for (int64_t from = 0; from < kRows; from += kRows / kMicro)
      sieve.inspect(visit_of(model, step, from, from + kRows / kMicro), {s, 0});
    observe(sieve, model, s);
    look(sieve, model, s);
    sieve.end_step({s, 0});
  }
  sieve.flush();
  return state;
}

/// What the ledger says of its rows [from, to).
struct Recorded {
  RawScores scores;
  Verdicts verdicts;
  at::Tensor sample;
};

Recorded recorded(const Visits& visits, const std::vector<std::string>& channels, int64_t from, int64_t to) {
  const auto part = [&](const at::Tensor& t) { return t.slice(0, from, to); };
  const auto columns = [&](const std::string& prefix) {
    std::vector<at::Tensor> all;
    for (const auto& name : channels) all.push_back(part(visits.floats(prefix + name)));
    return at::stack(all, 1);
  };
  Recorded r;
  r.sample = part(visits.integers("sample"));
  r.scores.raw = columns("raw_");
  r.scores.timestep = part(visits.floats("timestep"));
  r.scores.captioned = part(visits.integers("captioned")) > 0;
  r.scores.probed = at::isnan(r.scores.raw).logical_not().any(1);  // says which rows to probe next, and nothing else
  r.scores.nonfinite = at::zeros_like(r.scores.captioned);
  r.scores.elements = toy::kDim;
  r.verdicts = {part(visits.floats("weight")),
                part(visits.integers("flagged")) > 0,
                part(visits.floats("score")),
                part(visits.floats("threshold")),
                columns("z_"),
                part(visits.floats("alike")),
                {}};
  return r;
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  return at::equal(at::isnan(a), at::isnan(b)) && at::equal(a.nan_to_num(0), b.nan_to_num(0));
}

/// Features are the data set's, not the run's: the ledger need not hold them.
at::Tensor likeness_of(const Judge& judge, const at::Tensor& samples) {
  return judge.options().probe.likeness > 0 ? project_likeness(features(samples)) : at::Tensor();
}

/// Judges recorded rows anew; returns their record.
at::Tensor replayed(const Judge& judge, const Recorded& r, const Past& past, const at::Tensor& ids, int64_t step,
                    const RecordShape& shape) {
  const Verdicts v = judge.judge(past, r.scores, step);
  INFO("step " << step << (past.held_out ? ", held-out rows" : "") << (past.look ? ", looks" : ""));
  CHECK(same(v.z, r.verdicts.z));
  CHECK(same(v.score, r.verdicts.score));
  CHECK(same(v.level, r.verdicts.level));
  CHECK(at::equal(v.flagged, r.verdicts.flagged));
  CHECK(at::equal(v.weight, r.verdicts.weight));
  CHECK(at::equal(v.alike, r.verdicts.alike));
  RawScores scores = r.scores;
  scores.likeness = past.likeness;
  return record_lines(ids, scores, v, shape);
}

/// Pseudo-rows of step `step`'s held-out rows: the ledger names their pictures.
at::Tensor pseudo_rows(const Judge& judge, int64_t step) {
  const auto& o = judge.options().held_out;
  std::vector<int64_t> ids;
  for (const auto& visit : plan_held_out(step / o.every, o.rows, kPictures, judge.pseudo_rows(), 0, o.rows))
    ids.push_back(visit.id);
  return at::tensor(ids, at::kLong);
}

void replay(const std::string& yaml, const std::string& ledger, const std::map<std::string, at::Tensor>& first) {
  const Setup setup = setup_of_run();
  Schema root;
  root.section("sieve", sieve_schema(setup.filters), "");
  const Configuration c = Configuration::read(resolve(yaml, "run.yaml", root).section("sieve"), setup);
  Judge judge(c.judge, setup, 1);
  for (const auto& [name, tensor] : judge.state()) tensor->copy_(first.at(name));
  judge.restored();
  const Visits visits(ledger);
  const RecordShape shape{.channels = static_cast<int64_t>(c.record.channels.size()),
                          .likeness = c.judge.probe.likeness > 0 ? kLikenessWidth : 0};
  const auto kind = visits.integers("kind"), at_step = visits.integers("step");
  double dropped = 0, alike = 0, looks = 0, passed_over = 0;
  for (int64_t s = 0, row = 0; s < kSteps; ++s) {
    std::vector<at::Tensor> lines;
    const auto of_kind = [&](int64_t which) { return ((at_step == s) & (kind == which)).sum().item<int64_t>(); };
    for (int64_t m = 0; m < kMicro; ++m, row += kRows / kMicro) {
      const auto r = recorded(visits, c.record.channels, row, row + kRows / kMicro);
      lines.push_back(replayed(judge, r, judge.recall(r.sample, likeness_of(judge, r.sample)), r.sample, s, shape));
      dropped += (r.verdicts.weight < 1).sum().item<double>();
      alike += (r.verdicts.alike > 0).sum().item<double>();
    }
    Gathered gathered;
    gathered.shape = shape;
    gathered.training = at::cat(lines);
    gathered.held_out = gathered.looks = lines[0].slice(0, 0, 0);
    if (c.judge.held_out.observes(s)) {
      const auto ids = pseudo_rows(judge, s);
      const auto r = recorded(visits, c.record.channels, row, row + ids.size(0));
      REQUIRE(at::equal(ids % kPictures, r.sample));
      gathered.held_out = replayed(judge, r, judge.recall_held_out(ids), ids, s, shape);
      row += ids.size(0);
    }
    if (const int64_t count = of_kind(kLook); count > 0) {
      const auto r = recorded(visits, c.record.channels, row, row + count);
      gathered.looks =
          replayed(judge, r, judge.recall_look(r.sample, likeness_of(judge, r.sample)), r.sample, s, shape);
      row += count;
      looks += static_cast<double>(count);
    }
    row += of_kind(kPassedOver);
    passed_over += static_cast<double>(of_kind(kPassedOver));
    judge.fold(gathered, s);
  }
  CHECK(dropped > 0);  // there was something to get wrong
  CHECK(dropped < kSteps * kRows);
  CHECK((looks > 0) == c.judge.action.pass_over);
  CHECK((passed_over > 0) == c.judge.action.pass_over);
  CHECK((alike > 0) == (c.judge.probe.likeness > 0));
}

}  // namespace

TEST_CASE("the judge needs no model: recorded raw scores bring the run's own verdicts", "[replay]") {
  const std::string both = "sieve: {filters: {magnitude: {scale: log, timestep_min: 300}, prediction_error: {}}, ";
  const std::string rule = GENERATE_COPY(
      std::string(toy::kPublished),
      both +
          "standardise: {bins: 4, window: 16, min_count: 4}, reference: {kind: start_model, draws: 4}, evidence: "
          "{visits: 4}, threshold: {drop: 0.2, release: 0.4}, probe: {kind: budget}, block_rows: 4, held_out: "
          "{rows: 8, every: 2}}",
      both +
          "standardise: {population: training, bins: 2, window: 32, min_count: 8}, threshold: {kind: robust_z, "
          "drop: 1, release: 0.5}, action: {kind: downweight, warmup_steps: 5, max_fraction: 0.5}}",
      "sieve: {filters: {start_gap: {}}, standardise: {bins: 3, window: 100, min_count: 10, clip: 8}, evidence: {kind: "
      "discounted, discount: 0.9, spread: 3, spread_alike: 0.1, min_visits: 1}, threshold: {kind: rate, "
      "false_drop_rate: 0.01}, action: {pass_over: true}, revisit: {rows: 8, every: 8}, probe: {kind: budget, "
      "fraction: 0.25, likeness: 6}, held_out: {rows: 8, every: 2}}");
  const memsieve::testing::TemporaryFolder folder;
  const std::string ledger = folder.file("ledger.h5");
  replay(rule, ledger, run(rule, ledger));
}

}  // namespace of_test_replay
