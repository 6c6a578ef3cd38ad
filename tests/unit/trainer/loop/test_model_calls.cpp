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

using namespace memsieve;
using namespace memsieve::trainer;
namespace ms = memsieve::testing;

namespace {

const char* const kUNet =
    R"({"in_channels": 12, "out_channels": 12, "block_out_channels": [8, 16], "layers_per_block": 1,
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "cross_attention_dim": 6, "attention_head_dim": 2, "norm_num_groups": 4})";

std::string sieve_yaml(const std::string& filters, int64_t held_out_rows, const std::string& reference) {
  return "sieve:\n  filters: {" + filters +
         "}\n  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 4}\n"
         "  evidence: {kind: ledger, visits: 4, min_visits: 1}\n"
         "  threshold: {kind: held_out, drop: 0.3, release: 0.5}\n  probe: {kind: budget, fraction: 0.5}\n"
         "  block_rows: 2\n  reference: {" +
         reference + "}\n  held_out: {rows: " + std::to_string(held_out_rows) + "}\n";
}

const char* const kBoth = "magnitude: {norm: rms, scale: linear}, prediction_error: {scale: log}";
const char* const kLossAlone = "prediction_error: {scale: log}";

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
  const auto filters = GENERATE(as<std::string>{}, kBoth, kLossAlone);
  const std::string yaml = sieve_yaml(filters, 4, "kind: start_model, draws: 1");
  std::vector<std::map<std::string, at::Tensor>> states(ranks);
  const auto calls = run.calls(ranks, yaml, [&](RunData& data, Sieve& sieve, Model model, Group& group) {
    const auto spare = [&] { return Sieve::from_text(yaml, "test", std::make_shared<SoloComm>(), Case::setup()); };
    // 7 chunks of 2 rows: one of two ranks, or two of three, have none in the last round.
    if (!reference_pass(sieve, model, *data.training, &*data.held_out, group, {.seed = 1, .noise = {}, .batch_size = 2},
                        spare))
      throw DataError("stopped");
    states[group.rank()] = sieve.state();
  });
  const int64_t rounds = (7 + ranks - 1) / ranks, forwards = filters == kBoth ? 2 : 1;
  CHECK(calls == std::vector<int64_t>(ranks, rounds * forwards));
  for (const auto& state : states) {
    for (const auto& [name, tensor] : state) {
      INFO(name);
      CHECK(at::allclose(tensor, states[0].at(name), 0, 0, /*equal_nan=*/true));
    }
  }
}

TEST_CASE("in a step every rank calls the model equally often, also one without held-out rows") {
  const Case run;
  const int ranks = GENERATE(2, 3);
  const int64_t held_out_rows = GENERATE(1, 2, 4);
  const auto filters = GENERATE(as<std::string>{}, kBoth, kLossAlone);
  constexpr int64_t kSteps = 2;
  const auto calls =
      run.calls(ranks, sieve_yaml(filters, held_out_rows, "kind: none"),
                [&](RunData& data, Sieve& sieve, Model model, Group& group) {
                  const StepOptions options{
                      .train_batch_size = 2, .accumulation = 2, .max_train_steps = kSteps, .held_out_every = 1};
                  const Sampler sampler(12, group.world_size(), 2, 2, 1);
                  Trainee trainee(std::move(model), {.max_train_steps = kSteps}, group);
                  TrainStep step(
                      options, {.data = data, .sampler = sampler, .trainee = trainee, .sieve = &sieve, .group = group});
                  for (int64_t i = 0; i < kSteps; ++i) step.run(i);
                  if (step.failure()) std::rethrow_exception(step.failure());
                });
  // Each micro-batch is predicted, with both filters once more without captions, and so are the held-out rows, whose
  // own prediction then rides along.
  const int64_t each = filters == kBoth ? 2 * 2 + 1 : 2 + 1;
  CHECK(calls == std::vector<int64_t>(ranks, kSteps * each));
}
