// The built-in signals against their formulas, worked out number by number in double precision.
#include <ATen/ATen.h>
#include <memsieve/error.h>

#include <cmath>
#include <numeric>

#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_builtin_signals {

using Catch::Contains;
using namespace memsieve;

namespace {

constexpr int64_t kRows = 8, kSamples = 50;

Sieve make(const std::string& filters, const std::string& rest =
                                           ", standardise: {by: none}, evidence: {kind: visit}, "
                                           "threshold: {kind: fixed, drop: 1e9}}") {
  return Sieve::from_text("sieve: {filters: {" + filters + "}" + rest, "test", std::make_shared<SoloComm>(),
                          toy::setup(kSamples, kRows));
}

/// Each row's numbers.
using Numbers = std::vector<std::vector<double>>;

Numbers numbers(const at::Tensor& t) {
  const at::Tensor d = t.detach().to(at::kFloat).to(at::kDouble).flatten(1).contiguous();
  Numbers rows;
  for (int64_t i = 0; i < d.size(0); ++i)
    rows.emplace_back(d[i].const_data_ptr<double>(), d[i].const_data_ptr<double>() + d.size(1));
  return rows;
}

double squares(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

/// Rows with three other predictions, of which each is counted.
struct Rows {
  Rows() {
    for (const char* name : {"null", "start", "guidance"}) {
      const at::Tensor other = at::randn({kRows, toy::kDim}, at::detail::createCPUGenerator(others.size() + 5));
      others[name] = numbers(other);
      batch.counterfactuals[name] = [this, name, other](const at::Tensor& rows) {
        ++calls[name];
        return other.index_select(0, rows);
      };
    }
    batch.null_prediction = nullptr;
    prediction = numbers(batch.prediction);
    target = numbers(batch.target);
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  /// The raw scores of each channel.
  std::vector<std::vector<float>> raw(Sieve& sieve) const {
    sieve.inspect(batch, {});
    sieve.end_step({});
    return sieve.take_reports().at(0).raw;
  }
  double log_ratio(const std::string& other, size_t row) const {
    return std::log(squares(others.at(other)[row], target[row]) / squares(prediction[row], target[row]));
  }

  toy::Model model;
  Batch batch = toy::batch_of(model, toy::make_step(kRows, kSamples, 1, 0), 0, kRows);
  Numbers prediction, target;
  std::map<std::string, Numbers> others;
  std::map<std::string, int> calls;
};

}  // namespace

TEST_CASE("each built-in signal is its formula, and a prediction that several read is made once", "[signals]") {
  const Rows rows;
  auto sieve = make("start_gap: {}, caption_gain: {}, guidance_gap: {}, magnitude: {}, prediction_error: {scale: log}");
  REQUIRE(sieve.channels() ==
          std::vector<std::string>{"magnitude", "prediction_error", "start_gap", "caption_gain", "guidance_gap"});
  const auto raw = rows.raw(sieve);
  for (size_t i = 0; i < kRows; ++i) {
    INFO(i);
    CHECK(raw[0][i] == Approx(std::sqrt(squares(rows.prediction[i], rows.others.at("null")[i]))));
    CHECK(raw[1][i] == Approx(-std::log(squares(rows.prediction[i], rows.target[i]) / toy::kDim)).margin(1e-6));
    CHECK(raw[2][i] == Approx(rows.log_ratio("start", i)).margin(1e-6));
    CHECK(raw[3][i] == Approx(rows.log_ratio("null", i)).margin(1e-6));
    CHECK(raw[4][i] == Approx(std::sqrt(squares(rows.prediction[i], rows.others.at("guidance")[i]))));
  }
  CHECK(rows.calls == std::map<std::string, int>{{"null", 1}, {"start", 1}, {"guidance", 1}});
}

TEST_CASE("start_gap is no score of the starting model itself, and more the better the model has become", "[signals]") {
  Rows rows;
  const at::Tensor prediction = rows.batch.prediction.detach();
  rows.batch.counterfactuals["start"] = [&](const at::Tensor& which) { return prediction.index_select(0, which); };
  auto sieve = make("start_gap: {}");
  const auto before = rows.raw(sieve);
  for (const float gap : before.at(0)) CHECK(std::isnan(gap));
  rows.batch.prediction = rows.batch.target + (prediction - rows.batch.target) * 0.5;
  // A quarter of the squared error.
  const auto raw = rows.raw(sieve);
  for (const float gap : raw.at(0)) CHECK(gap == Approx(std::log(4.0)));
}

TEST_CASE("a prediction that meets its target has a finite score", "[signals]") {
  Rows rows;
  rows.batch.prediction = rows.batch.target.clone();
  auto sieve = make("start_gap: {}, caption_gain: {}");
  for (const auto& channel : rows.raw(sieve)) {
    REQUIRE(channel.size() == kRows);
    for (const float value : channel) CHECK((std::isfinite(value) && value > 10));
  }
}

TEST_CASE("timestep_min leaves rows of the new filters unscored", "[signals]") {
  const Rows rows;
  auto sieve = make("start_gap: {timestep_min: 500}");
  const auto above = (rows.batch.timestep >= 500).sum().item<int64_t>();
  REQUIRE((above > 0 && above < kRows));
  CHECK(rows.raw(sieve).at(0).size() == static_cast<size_t>(above));
}

TEST_CASE("a sieve tells which predictions it will ask for", "[signals]") {
  using Names = std::vector<std::string>;
  CHECK(make("prediction_error: {}").counterfactuals() == Names{});
  CHECK(make("caption_gain: {}, magnitude: {}").counterfactuals() == Names{"null"});
  CHECK(make("guidance_gap: {}, start_gap: {}").counterfactuals() == Names{"start", "guidance"});
}

namespace {

const std::string kReferred =
    ", standardise: {by: timestep, population: training, bins: 1, window: 100, min_count: 20}, evidence: {kind: visit}, "
    "threshold: {kind: fixed, drop: 1e9}, reference: {kind: start_model, draws: 1}}";

/// Shows each sample once.
void show_all(Sieve& sieve, const at::Tensor& has_caption = {}) {
  const at::Tensor ids = at::arange(kSamples), errors = at::rand({kSamples}, at::detail::createCPUGenerator(3)) + 0.5;
  Batch batch = toy::scripted(ids, at::full({kSamples}, 500), errors, at::rand({kSamples}) + 1);
  batch.has_caption = has_caption;
  sieve.reference(batch, false);
  sieve.finish_reference();
}

}  // namespace

TEST_CASE("before training what compares with the starting model is left out", "[signals]") {
  CHECK_THROWS_WITH(make("start_gap: {}", kReferred),
                    Contains("reference.kind: start_model has nothing to add to filters that compare with the starting "
                             "model already; set reference.kind: none"));
  auto with = make("start_gap: {}, prediction_error: {}", kReferred), without = make("prediction_error: {}", kReferred);
  show_all(with);  // and no batch needs Batch::counterfactuals["start"]
  show_all(without);
  CHECK(at::equal(with.state().at("easiness").select(1, 0), without.state().at("easiness").select(1, 0)));
  CHECK(at::equal(with.state().at("easiness").select(1, 1), at::zeros({kSamples})));
  const Rows rows;
  // No level of zeros, which would have made extremes of these.
  with.inspect(rows.batch, {});
  with.end_step({});
  CHECK(with.take_reports().at(0).raw.at(1).size() == kRows);
}

TEST_CASE("the reference pass asks for predictions once for a batch, also for one without captions", "[signals]") {
  auto sieve = make("magnitude: {scale: log}", kReferred);
  int calls = 0;
  int64_t asked = 0;
  const auto show = [&](const at::Tensor& has_caption) {
    Batch batch =
        toy::scripted(at::arange(kSamples), at::full({kSamples}, 500), at::ones({kSamples}), at::rand({kSamples}) + 1);
    batch.has_caption = has_caption;
    const auto null = batch.null_prediction;
    batch.null_prediction = [&, null](const at::Tensor& rows) {
      ++calls;
      asked = rows.size(0);
      return null(rows);
    };
    REQUIRE(sieve.reference(batch, false));
  };
  show(at::arange(kSamples) < 3);
  CHECK((calls == 1 && asked == 3));
  show(at::zeros({kSamples}, at::kBool));
  CHECK((calls == 2 && asked == 1));
  sieve.finish_reference();
  CHECK(sieve.state().at("easiness").slice(0, 3).abs().max().item<float>() == 0);
}

}  // namespace of_test_builtin_signals
