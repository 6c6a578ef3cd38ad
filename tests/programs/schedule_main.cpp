// memsieve-schedule REQUEST.json OUT.safetensors: what the trainer makes of a schedule, so that
// tests/python/test_schedules.py can compare it with diffusers. Not installed.

#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/models/diffusers/scheduler_file.h>
#include <diffusion/io/safetensors.h>
#include <trainer/optim/lr_schedule.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

namespace {

using namespace memsieve::diffusion;
using namespace memsieve::trainer;
using Json = nlohmann::json;

SchedulerFile schedule_of(const Json& request) {
  if (request.contains("scheduler")) return read_scheduler_file(request["scheduler"]);
  const Json& s = request.at("schedule");
  SchedulerFile file;
  file.schedule = {s.at("num_train_timesteps"), s.at("beta_schedule"),         s.at("beta_start"), s.at("beta_end"),
                   s.at("prediction_type"),     s.at("rescale_betas_zero_snr")};
  return file;
}

/// 0.3 x + 0.1 mean(text) + 0.2 t / T: linear, so that the comparison is of the schedule alone.
at::Tensor linear_model(const at::Tensor& x, const at::Tensor& t, const at::Tensor& text, double count) {
  const auto column = [](const at::Tensor& v) { return v.view({-1, 1, 1, 1}); };
  return 0.3 * x + 0.1 * column(text.mean(at::IntArrayRef{1, 2})) + column(t.to(at::kFloat)) * (0.2 / count);
}

void draw(const Json& request, const SchedulerFile& file, const NoiseSchedule& schedule, const TensorMap& inputs,
          TensorMap& out) {
  const Json& d = request.at("draw");
  DdimOptions options = file.sampling;
  options.steps = d.at("steps");
  options.guidance = d.at("guidance");
  options.timestep_spacing = d.value("timestep_spacing", options.timestep_spacing);
  options.steps_offset = d.value("steps_offset", options.steps_offset);
  options.set_alpha_to_one = d.value("set_alpha_to_one", options.set_alpha_to_one);
  options.clip_sample = d.value("clip_sample", options.clip_sample);
  options.clip_sample_range = d.value("clip_sample_range", options.clip_sample_range);
  std::vector<double> seen;
  const Predict model = [&](const at::Tensor& x, const at::Tensor& t, const Conditioning& condition) {
    const at::Tensor told = t + schedule.first_timestep();
    seen.push_back(told[0].item<double>());
    return linear_model(x, told, condition.text, static_cast<double>(schedule.num_timesteps()));
  };
  out["drawn"] = ddim_sample(schedule, model, inputs.at("noise"), Conditioning(inputs.at("text")),
                             Conditioning(inputs.at("null_text")), options);
  out["timesteps"] = at::tensor(seen, at::kDouble);
}

TensorMap answer(const Json& request) {
  TensorMap out;
  if (request.contains("timesteps_for")) {
    DdimOptions options;
    options.timestep_spacing = request.at("timestep_spacing");
    options.steps_offset = 0;
    for (const int64_t steps : request["timesteps_for"].get<std::vector<int64_t>>()) {
      options.steps = steps;
      out[std::to_string(steps)] = at::tensor(ddim_timesteps(1000, options), at::kLong);
    }
    return out;
  }
  if (request.contains("lr")) {
    const Json& lr = request["lr"];
    OptimizerConfig config;
    config.lr_scheduler = lr.at("name");
    config.lr_warmup_steps = lr.at("warmup");
    config.lr_num_cycles = lr.value("cycles", 1);
    config.lr_power = lr.value("power", 1.0);
    config.learning_rate = lr.value("learning_rate", 1.0);
    std::vector<double> factors;
    for (int64_t i = 0; i <= lr.at("steps").get<int64_t>(); ++i)
      factors.push_back(lr_factor(config, lr.at("steps"), i));
    return {{"factors", at::tensor(factors, at::kDouble)}};
  }
  const SchedulerFile file = schedule_of(request);
  const NoiseSchedule schedule(file.schedule);
  const TensorMap inputs = load_safetensors(request.at("inputs"));
  const at::Tensor x0 = inputs.at("x0"), noise = inputs.at("noise"), t = inputs.at("t");
  out["alphas_cumprod"] = schedule.alphas_cumprod();
  out["noisy"] = schedule.add_noise(x0, noise, t);
  out["target"] = schedule.target(x0, noise, t);
  const at::Tensor all = at::arange(schedule.num_timesteps(), at::kLong);
  out["snr"] = schedule.snr(all);
  out["weight"] = schedule.min_snr_weight(all, request.value("gamma", 5.0));
  if (request.contains("draw")) draw(request, file, schedule, inputs, out);
  if (request.contains("write")) {
    std::ofstream(request["write"].get<std::string>()) << scheduler_json(file.schedule, file.sampling);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw memsieve::ConfigError("usage: memsieve-schedule REQUEST.json OUT.safetensors");
    std::ifstream in(argv[1]);
    save_safetensors(argv[2], answer(Json::parse(in)));
    return 0;
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 2;
  }
}
