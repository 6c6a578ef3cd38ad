// Every rank calls the model equally often, whatever rows it has: one that is spread over the ranks would
// wait for ever.
#include <ATen/ATen.h>
#include <diffusion/models/unet/unet_family.h>
#include <memsieve/builtin.h>
#include <memsieve/error.h>
#include <trainer/loop/reference_pass.h>
#include <trainer/loop/train_step.h>

#include <support/hdf5_writer.h>
#include <support/process_ranks.h>

#include <catch2/catch.hpp>

namespace of_test_model_calls {

using namespace memsieve;
using namespace memsieve::trainer;
namespace ms = memsieve::testing;

namespace {

const char* const kUNet =
    R"({"in_channels": 12, "out_channels": 12, "block_out_channels": [8, 16], "layers_per_block": 1,
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "cross_attention_dim": 6, "attention_head_dim": 2, "norm_num_groups": 4})";

std::string sieve_yaml(const std::string& filters, int64_t held_out_rows, const std::string& reference,
                       const std::string& more = "") {
  return "sieve:\n  filters: {" + filters +
         "}\n  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 4}\n"
         "  evidence: {kind: ledger, visits: 4, min_visits: 1}\n"
         "  threshold: {kind: held_out, drop: 0.3, release: 0.5}\n  probe: {kind: budget, fraction: 0.5}\n"
         "  block_rows: 2\n  reference: {" +
         reference + "}\n  held_out: {rows: " + std::to_string(held_out_rows) + "}\n" + more;
}

const char* const kBoth = "magnitude: {norm: rms, scale: linear}, prediction_error: {scale: log}";
const char* const kLossAlone = "prediction_error: {scale: log}";
const char* const kStartAlone = "start_gap: {}";
const char* const kAll = "start_gap: {}, caption_gain: {}, magnitude: {}";

/// A UNet that counts how often it is asked.
class Counting : public Denoiser {
 public:
  explicit Counting(int64_t& calls)
      : inner_(unet_denoiser(UNet2DConditionModel(parse_unet_config(kUNet, "unet")))), calls_(calls) {}
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) override {
    ++calls_;
    return inner_->predict(sample, timestep, condition);
  }
  torch::nn::Module& module() override { return inner_->module(); }
  std::string component() const override { return inner_->component(); }
  void set_gradient_checkpointing(bool on) override { inner_->set_gradient_checkpointing(on); }
  void check_takes(const RowShape& rows, const std::string& from) const override { inner_->check_takes(rows, from); }
  void save(const std::string& folder) override { inner_->save(folder); }

 private:
  std::unique_ptr<Denoiser> inner_;
  int64_t& calls_;
};

/// 12 training rows and 2 held out, and what a rank of a run on them has.
struct Case {
  Case() {
    ms::write_pictures(folder.file("train.h5"), 12);
    ms::write_pictures(folder.file("held_out.h5"), 2);
  }

  RunDataOptions data() const {
    return {.train = folder.file("train.h5"),
            .held_out = folder.file("held_out.h5"),
            .validation = "",
            .prompts = "",
            .schedule = {.prediction_type = "v_prediction"}};
  }

  /// What `body` counts in a run of `ranks` ranks, by rank.
  std::vector<int64_t> calls(int ranks, const std::string& sieve,
                             const std::function<void(RunData&, Sieve&, Model, Group&)>& body) const {
    std::vector<int64_t> count(ranks);
    std::vector<std::unique_ptr<Denoiser>> models;
    for (int rank = 0; rank < ranks; ++rank) {
      at::manual_seed(1);
      models.push_back(std::make_unique<Counting>(count[rank]));
    }
    const RunDataOptions options = data();
    CHECK(ms::run_groups(ranks, [&](Group& group) {
            RunData rows(options, c10::kCPU);
            Sieve made = Sieve::from_text(sieve, "test", group.communicator(), setup());
            body(rows, made, Model(std::move(models[group.rank()]), {}), group);
          }) == ms::no_errors(ranks));
    return count;
  }

  static Setup setup() {
    Setup setup;
    setup.filters = builtin_filters();
    setup.dataset_size = 12;
    setup.rows_per_micro_batch = 2;
    setup.micro_batches = 2;
    setup.held_out_size = 2;
    return setup;
  }

  ms::TemporaryFolder folder;
};

}  // namespace

TEST_CASE("in the reference pass every rank calls the model equally often, and the sieve learns the same") {
  const Case run;
  const int ranks = GENERATE(1, 2, 3);
  // In the last case a chunk of the first draw has no row with a magnitude, one of the second has.
  const auto [filters, draws] =
      GENERATE(table<std::string, int64_t>({{kBoth, 1},
                                            {kLossAlone, 1},
                                            {std::string(kAll) + ", prediction_error: {}", 1},
                                            {"magnitude: {norm: rms, timestep_min: 600}", 2}}));
  const std::string yaml = sieve_yaml(filters, 4, "kind: start_model, draws: " + std::to_string(draws));
  std::vector<std::map<std::string, at::Tensor>> states(ranks);
  const auto calls = run.calls(ranks, yaml, [&](RunData& data, Sieve& sieve, Model model, Group& group) {
    const auto spare = [&] { return Sieve::from_text(yaml, "test", std::make_shared<SoloComm>(), Case::setup()); };
    // 7 chunks of 2 rows for each draw: with one draw one of two ranks, or two of three, have none in the last round.
    if (!reference_pass(sieve, model, *data.training, &*data.held_out, group, {.seed = 1, .noise = {}, .batch_size = 2},
                        spare))
      throw DataError("stopped");
    states[group.rank()] = sieve.state();
  });
  const int64_t rounds = (7 * draws + ranks - 1) / ranks, forwards = filters == kLossAlone ? 1 : 2;
  CHECK(calls == std::vector<int64_t>(ranks, rounds * forwards));
  for (const auto& state : states) {
    for (const auto& [name, tensor] : state) {
      INFO(name);
      CHECK(at::allclose(tensor, states[0].at(name), 0, 0, /*equal_nan=*/true));
    }
  }
}

TEST_CASE("in a step every rank calls the models equally often, also one without held-out rows") {
  const Case run;
  const int ranks = GENERATE(2, 3);
  const int64_t held_out_rows = GENERATE(1, 2, 4);
  const auto filters = GENERATE(as<std::string>{}, kBoth, kLossAlone, kStartAlone, kAll);
  const bool adapters = GENERATE(false, true);
  constexpr int64_t kSteps = 2;
  std::vector<int64_t> start_calls(ranks);
  const auto calls = run.calls(
      ranks, sieve_yaml(filters, held_out_rows, "kind: none"),
      [&](RunData& data, Sieve& sieve, Model model, Group& group) {
        const StepOptions options{
            .train_batch_size = 2, .accumulation = 2, .max_train_steps = kSteps, .held_out_every = 1};
        const Sampler sampler(12, group.world_size(), 2, 2, 1);
        if (adapters) model.add_lora({}, 1, "lora");
        Trainee trainee(std::move(model), {.max_train_steps = kSteps}, group);
        StartingModel start = adapters ? StartingModel(trainee.model())
                                       : StartingModel(std::make_unique<Model>(
                                             std::make_unique<Counting>(start_calls[group.rank()]), ModelOptions{}));
        TrainStep step(
            options,
            {.data = data, .sampler = sampler, .trainee = trainee, .sieve = &sieve, .start = &start, .group = group});
        for (int64_t i = 0; i < kSteps; ++i) step.run(i);
        if (step.failure()) std::rethrow_exception(step.failure());
      });
  const bool null = filters == kBoth || filters == kAll, compares = filters == kStartAlone || filters == kAll;
  // Each micro-batch is predicted, where a filter asks for it once more without captions and once by the starting
  // model. The held-out rows are predicted once for themselves or without captions (then their own prediction rides
  // along); what the starting model predicts for them always rides along.
  const int64_t each = null ? 2 * 2 + 1 : 2 + 1, asked = compares ? 2 : 0;
  CHECK(calls == std::vector<int64_t>(ranks, kSteps * (each + (adapters ? asked : 0))));
  CHECK(start_calls == std::vector<int64_t>(ranks, adapters ? 0 : kSteps * asked));
}

TEST_CASE("in a step every rank calls the model equally often, also one without held-out rows or looks") {
  const Case run;
  const int ranks = GENERATE(2, 3);
  const int64_t held_out_rows = GENERATE(1, 2, 4);
  const auto filters = GENERATE(as<std::string>{}, kBoth, kLossAlone);
  const int64_t looks = GENERATE(0, 1, 4);
  const std::string pass_over = "  action: {pass_over: true}\n  revisit: {rows: " + std::to_string(looks) + "}\n";
  constexpr int64_t kSteps = 4;
  const auto calls = run.calls(
      ranks, sieve_yaml(filters, held_out_rows, "kind: none", looks > 0 ? pass_over : ""),
      [&](RunData& data, Sieve& sieve, Model model, Group& group) {
        const StepOptions options{.train_batch_size = 2,
                                  .accumulation = 2,
                                  .max_train_steps = kSteps,
                                  .prefetch = 3,
                                  .held_out_every = 1,
                                  .revisit_every = looks > 0 ? 1 : 0,
                                  .pass_over = looks > 0};
        const Sampler sampler(12, group.world_size(), 2, 2, 1);
        Trainee trainee(std::move(model), {.max_train_steps = kSteps}, group);
        TrainStep step(
            options,
            {.data = data, .sampler = sampler, .trainee = trainee, .sieve = &sieve, .start = nullptr, .group = group});
        for (int64_t i = 0; i < kSteps; ++i) step.run(i);
        if (step.failure()) std::rethrow_exception(step.failure());
      });
  // Each micro-batch is predicted, with both filters once more without captions, and so are the held-out rows, whose
  // own prediction then rides along; and looks with them.
  const int64_t each = filters == kBoth ? 2 * 2 + 1 : 2 + 1;
  CHECK(calls == std::vector<int64_t>(ranks, kSteps * each));
}

}  // namespace of_test_model_calls
