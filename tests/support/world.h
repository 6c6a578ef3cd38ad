#pragma once
// A data set, a model and a configuration for runs of the trainer that take a second, and what such runs left.
#include <ATen/ATen.h>
#include <diffusion/io/safetensors.h>
#include <trainer/trainer_rooms.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <support/processes.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace world {

namespace fs = std::filesystem;
using namespace memsieve;
using namespace memsieve::trainer;

inline const char* const kUNet =
    R"({"in_channels": 12, "out_channels": 12, "block_out_channels": [8, 16], "layers_per_block": 1,
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "cross_attention_dim": 6, "attention_head_dim": 2, "norm_num_groups": 4})";

/// The magnitude's own scale at the start: about half of all visits lie beyond this level.
inline const char* const kSieve = R"(sieve:
  filters:
    magnitude: {norm: rms, scale: linear}
    prediction_error: {scale: log}
  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 4}
  reference: {kind: start_model, draws: 2}
  evidence: {kind: ledger, visits: 4, min_visits: 1}
  threshold: {kind: held_out, drop: 0.3, release: 0.5}
  probe: {kind: budget, fraction: 0.5}
  block_rows: 2
  held_out: {rows: 4}
)";

/// Fails with what rank 0 said unless every rank ended well.
inline void require_done(const processes::Result& result) {
  INFO(result.outputs.front());
  REQUIRE(result.exit_codes == std::vector<int>(result.exit_codes.size(), 0));
}

/// Data, model and configuration of a run that takes a second.
class World {
 public:
  World() {
    testing::write_pictures(path("train.h5"), 24);
    auto others = testing::write_pictures(path("held_out.h5"), 6);
    others.replace("/images", testing::some_images(12).slice(0, 6).add(91));
    others.attribute("/images", "mean", std::vector<double>{0.5, 0.4, 0.3});
    others.attribute("/images", "std", std::vector<double>{0.25, 0.3, 0.35});
    others.attribute("/images", "pixel_unshuffle", int64_t{2});
    std::ofstream(path("unet.json")) << kUNet;
    write_config(kSieve);
  }
  std::string path(const std::string& name) const { return folder_.file(name); }

  void write_config(const std::string& sieve) const {
    std::ofstream(path("run.yaml"))
        << "seed: 5\ndevice: cpu\ndata: {train: " << path("train.h5") << ", held_out: " << path("held_out.h5")
        << ", validation: " << path("held_out.h5") << ", prompts: " << path("held_out.h5")
        << "}\nmodel: {config: " << path("unet.json")
        << "}\nprediction_type: v_prediction\nproportion_empty_prompts: 0.2\nmax_train_steps: 12\n"
        << "train_batch_size: 4\nlearning_rate: 0.002\nuse_ema: true\nlog_every: 1000\n"
        << "collective_seconds: 30\nvalidation: {every: 6, draws: 2}\n"
        << "sampling: {every: 6, num_inference_steps: 4, num_images_per_prompt: 2}\n"
        << sieve;
  }

  /// Trains on `ranks` processes into folder `run`.
  processes::Result train(int ranks, const std::string& run, const std::string& overrides = "") const {
    return processes::run("trainer rank", ranks, path("run.yaml") + ";output_dir=" + path(run) + ";" + overrides, 120);
  }

 private:
  testing::TemporaryFolder folder_;
};

inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ';');) {
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

inline TensorMap tensors(const World& world, const std::string& run, int64_t step, const std::string& file) {
  return load_safetensors(
      world.path(run + "/checkpoints/" + (step < 10 ? "step-00000" : "step-0000") + std::to_string(step) + "/" + file));
}

inline const std::vector<std::string> kFiles = {"unet/diffusion_pytorch_model.safetensors",
                                                "unet_ema/diffusion_pytorch_model.safetensors", "optimizer.safetensors",
                                                "sieve.safetensors"};

inline void check_equal(const TensorMap& a, const TensorMap& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    INFO(name);
    CHECK(at::allclose(tensor, b.at(name), 0, 0, /*equal_nan=*/true));
  }
}

/// metrics.jsonl without what depends on the clock.
inline std::string metrics(const World& world, const std::string& run) {
  std::ifstream in(world.path(run + "/metrics.jsonl"));
  std::string out;
  for (std::string line; std::getline(in, line);) {
    for (const std::string key : {"\"step_ms\"", "\"images_per_second\""}) {
      const auto begin = line.find(key);
      if (begin != std::string::npos) line.erase(begin, line.find(',', begin) - begin);
    }
    out += line + "\n";
  }
  return out;
}

inline int64_t sum_of(const std::string& metrics, const std::string& key) {
  int64_t sum = 0;
  const std::string mark = "\"" + key + "\":";
  for (size_t at = metrics.find(mark); at != std::string::npos; at = metrics.find(mark, at + 1)) {
    sum += std::stoll(metrics.substr(at + mark.size()));
  }
  return sum;
}

}  // namespace world
