#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <diffusion/noise/ddim.h>
#include <runtime/agreement.h>
#include <runtime/stop.h>
#include <trainer/loop/evaluate.h>

#include <algorithm>
#include <cmath>

namespace memsieve::trainer {

namespace {

/// One row to evaluate or picture to draw.
struct Item {
  int64_t first = 0;
  int64_t second = 0;
};

/// This rank's share: batches of equal size, dealt out in turn.
std::vector<std::vector<Item>> my_batches(int64_t first_count, int64_t second_count, const Group& group,
                                          int64_t batch_size) {
  const int64_t total = first_count * second_count, ranks = group.world_size();
  const int64_t rows = std::clamp<int64_t>((total + ranks - 1) / ranks, 1, batch_size);
  std::vector<std::vector<Item>> batches;
  for (int64_t begin = 0, i = 0; begin < total; begin += rows, ++i) {
    if (i % ranks != group.rank()) continue;
    auto& batch = batches.emplace_back();
    for (int64_t at = begin; at < std::min(total, begin + rows); ++at) {
      batch.push_back({at / second_count, at % second_count});
    }
  }
  return batches;
}

}  // namespace

int64_t rows_without_gradient(int64_t train_batch_size, bool gradient_checkpointing) {
  // Where nothing is kept for backward, a row takes a small part of the memory.
  const int64_t rows = gradient_checkpointing ? train_batch_size : 4 * train_batch_size;
  return std::clamp<int64_t>(rows, 1, 64);
}

int64_t stratified_timestep(int64_t row, int64_t draw, int64_t draws, int64_t num_timesteps) {
  const double golden = 0.6180339887498949;
  const double shift = (static_cast<double>(row) + 0.5) * golden;
  const double fraction = (static_cast<double>(draw) + shift - std::floor(shift)) / static_cast<double>(draws);
  return std::min(num_timesteps - 1, static_cast<int64_t>(fraction * static_cast<double>(num_timesteps)));
}

ValidationLoss validate(Model& model, const RowMaker& rows, Group& group, const ValidationOptions& options) {
  at::NoGradGuard no_grad;
  const int64_t draws = options.draws, size = rows.data().size();
  at::Tensor sum = at::zeros({1}, at::TensorOptions(at::kDouble).device(model.device()));
  on_all_ranks(group, [&] {
    for (const auto& batch : my_batches(size, draws, group, options.batch_size)) {
      std::vector<int64_t> ids, timesteps;
      std::vector<RowKey> keys;
      for (const auto& item : batch) {
        ids.push_back(item.first);
        timesteps.push_back(stratified_timestep(item.first, item.second, draws, rows.schedule().num_timesteps()));
        keys.push_back({item.first, item.second});
      }
      const RowNoise noise = rows.noise(options.seed, kValidationNoise, keys, {});
      const NoisyRows noisy = rows.make(ids, ids, at::tensor(timesteps, at::kLong), noise);
      const at::Tensor prediction = model.predict(noisy.noisy, noisy.timestep, noisy.condition);
      sum += row_losses(prediction, noisy.target).to(at::kDouble).sum();
      note_progress();
    }
  });
  group.all_reduce_sum(sum);
  const int64_t count = size * draws;
  return {sum.item<double>() / static_cast<double>(count), count};
}

at::Tensor draw_samples(Model& model, const Dataset& prompts, PictureDecoder& pictures, const NoiseSchedule& schedule,
                        Group& group, const DrawOptions& options) {
  at::NoGradGuard no_grad;
  const int64_t seeds = options.per_prompt;
  const auto& shape = prompts.latent_shape();
  const int64_t height = shape[1] * pictures.factor(), width = shape[2] * pictures.factor();
  const at::Tensor images = at::zeros({prompts.size() * seeds, 3, height, width}, at::kByte);
  const Predict predict = [&](const at::Tensor& x, const at::Tensor& t, const Conditioning& c) {
    return model.predict(x, t, c);
  };
  on_all_ranks(group, [&] {
    const Conditioning null = prompts.null().to(model.device());
    for (const auto& batch : my_batches(prompts.size(), seeds, group, options.batch_size)) {
      std::vector<int64_t> ids, places;
      std::vector<RowKey> keys;
      for (const auto& item : batch) {
        ids.push_back(item.first);
        places.push_back(item.first * seeds + item.second);
        keys.push_back({item.first, item.second});
      }
      const at::Tensor noise = keyed_normal(options.seed, Stream::draw_noise, keys, shape).to(model.device());
      const Conditioning condition = prompts.load(ids).condition.to(model.device());
      const at::Tensor drawn = ddim_sample(schedule, predict, noise, condition, null, options.ddim);
      images.index_copy_(0, at::tensor(places, at::kLong), pictures.decode(drawn).cpu());
      note_progress();
    }
  });
  // Every picture was drawn by one rank and is 0 on the others.
  group.all_reduce_sum(images);
  return images.view({prompts.size(), seeds, 3, height, width});
}

}  // namespace memsieve::trainer
