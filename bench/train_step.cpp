// Our own training step for a configuration: images/s, milliseconds per part, peak memory.
//   memsieve-bench-train-step --config FILE [--set a.b=c]... [--rounds 5] [--steps 16] [--kernels]
//   memsieve-bench-train-step --config FILE [--set a.b=c]... --serve ROWS.safetensors
//   memsieve-bench-train-step --config FILE [--set a.b=c]... --sync-check STEPS
// The first form prints a table and, as the last line, one JSON object. The second writes the first step's rows and
// then answers numbers on its input: N runs N steps and prints one line of JSON. The third, on a GPU, fails if a step
// makes the host wait for it. --kernels: one more line of JSON says what a GPU's kernels do in a step.
#include "run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <memsieve/error.h>
#include <sys/resource.h>
#include <diffusion/io/safetensors.h>
#include <runtime/run_program.h>

#include <boost/program_options.hpp>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "kernels.h"
#include "parts.h"

namespace {

namespace po = boost::program_options;
using namespace memsieve;
using namespace memsieve::bench;
using runtime::Group;

struct Options {
  std::string config, serve;
  std::vector<std::string> overrides;
  int64_t rounds = 5, steps = 16, sync_check = 0;
  bool kernels = false;
};

/// The largest value of all ranks.
double over_ranks(Group& group, double mine) {
  const at::Tensor all = at::zeros({group.world_size()}, at::kDouble);
  all[group.rank()] = mine;
  group.all_reduce_sum(all);
  return all.max().item<double>();
}

double peak_rss_mib() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_maxrss) / 1024;
}

nlohmann::json peak_gpu_mib(Group& group) {
  const c10::Device device = group.device();
  if (device.is_cpu()) return nullptr;
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return over_ranks(group, static_cast<double>(stats.allocated_bytes.at(0).peak) / (1 << 20));
}

void print_table(const nlohmann::ordered_json& out) {
  std::printf("%s: %d x %s, %d threads each, %d rows a step\n", out["config"].get<std::string>().c_str(),
              out["processes"].get<int>(), out["device"].get<std::string>().c_str(), out["threads"].get<int>(),
              out["batch"].get<int>());
  const double step = out["step_ms"];
  for (const auto& [name, ms] : out["parts_ms"].items())
    std::printf("  %-10s %10.2f ms %5.1f%%\n", name.c_str(), ms.get<double>(), 100 * ms.get<double>() / step);
  std::printf("  %-10s %10.2f ms\n%.2f images/s, peak memory %.0f MiB a process", "step", step,
              out["images_per_s"].get<double>(), out["peak_rss_mib"].get<double>());
  if (!out["peak_gpu_mib"].is_null()) std::printf(", %.0f MiB allocated on the GPU", out["peak_gpu_mib"].get<double>());
  std::printf("\n%s\n", out.dump().c_str());
}

void measure(const Options& o, Group& group) {
  Run run(o.config, o.overrides, group);
  run.steps(2);
  PartTimer timer(run.step(), run.session().trainee().model().parameter_list(), group.device());
  std::vector<double> wall;
  std::array<std::vector<double>, kParts> parts;
  for (int64_t round = 0; round < o.rounds; ++round) {
    wall.push_back(run.steps(o.steps, [&] { timer.begin(); }).wall_ms);
    const PartTimes times = timer.take();
    for (size_t i = 0; i < kParts; ++i) parts[i].push_back(times[i]);
  }
  const auto batch = run.session().sampler().global_batch_size();
  const double step = over_ranks(group, median(wall));
  nlohmann::ordered_json out{{"config", o.config},
                             {"device", group.device().str()},
                             {"processes", group.world_size()},
                             {"threads", at::get_num_threads()},
                             {"batch", batch},
                             {"rounds", o.rounds},
                             {"steps", o.steps},
                             {"images_per_s", 1000 * static_cast<double>(batch) / step},
                             {"step_ms", step}};
  for (size_t i = 0; i < kParts; ++i) out["parts_ms"][part_name(static_cast<trainer::Part>(i))] = median(parts[i]);
  out["peak_rss_mib"] = over_ranks(group, peak_rss_mib());
  out["peak_gpu_mib"] = peak_gpu_mib(group);
  if (group.rank() == 0) print_table(out);
  if (!o.kernels) return;
  const nlohmann::ordered_json kernels{{"kernels", kernel_times([&] { run.steps(1); })}};
  if (group.rank() == 0) std::cout << kernels.dump() << std::endl;
}

void serve(const Options& o, Group& group) {
  Run run(o.config, o.overrides, group);
  const trainer::NoisyRows rows = run.step().rows(0, 0);
  const auto saved = [](const at::Tensor& tensor) { return tensor.cpu().contiguous(); };
  trainer::save_safetensors(o.serve, {{"noisy", saved(rows.noisy)},
                                      {"target", saved(rows.target)},
                                      {"timestep", saved(rows.timestep)},
                                      {"text", saved(rows.condition.text)},
                                      {"null_text", saved(run.session().data().training->null().text)}});
  std::cout << "{}" << std::endl;
  const auto batch = static_cast<double>(run.session().sampler().global_batch_size());
  for (int64_t count = 0; std::cin >> count && count > 0;) {
    const StepTime time = run.steps(count);
    const nlohmann::json answer{{"wall_ms", time.wall_ms},
                                {"cpu_ms", time.cpu_ms},
                                {"loss", run.numbers().loss_sum / batch},
                                {"grad_norm", run.numbers().grad_norm}};
    std::cout << answer.dump() << std::endl;
  }
}

void check_waits(const Options& o, Group& group) {
  Run run(o.config, o.overrides, group);
  run.steps(4);
  run.steps_without_waiting(o.sync_check);
  if (group.rank() == 0) std::cout << nlohmann::json{{"steps", o.sync_check}, {"waits", 0}}.dump() << std::endl;
}

Options read_command_line(int argc, char** argv) {
  Options o;
  po::options_description options("memsieve-bench-train-step");
  options.add_options()("config", po::value(&o.config)->required(), "YAML file");
  options.add_options()("set", po::value(&o.overrides)->composing(), "a.b=c: overrides a key");
  options.add_options()("rounds", po::value(&o.rounds), "medians are taken over rounds");
  options.add_options()("steps", po::value(&o.steps),
                        "steps in a round (16); of 16 one has held-out and revisited rows");
  options.add_options()("serve", po::value(&o.serve), "where to write the first step's rows");
  options.add_options()("kernels", po::bool_switch(&o.kernels), "also what a GPU's kernels do in a step");
  options.add_options()("sync-check", po::value(&o.sync_check), "steps in which the host must not wait for the GPU");
  try {
    po::variables_map given;
    po::store(po::command_line_parser(argc, argv).options(options).run(), given);
    po::notify(given);
  } catch (const po::error& error) {
    throw ConfigError(error.what());
  }
  if (o.sync_check < 0) throw ConfigError("--sync-check must be at least 1");
  if (o.rounds < 1 || o.steps < 1) throw ConfigError("--rounds and --steps must be at least 1");
  return o;
}

class TrainStepProgram : public runtime::Program {
 public:
  bool parse(int argc, char** argv) override {
    options_ = read_command_line(argc, argv);
    return true;
  }
  std::optional<runtime::ProgramOptions> configure(const runtime::Launch&) override {
    return runtime::ProgramOptions{.device = trainer::read_config(options_.config, options_.overrides).device};
  }
  runtime::ExitCode run(Group& group) override {
    if (options_.sync_check > 0)
      check_waits(options_, group);
    else if (options_.serve.empty())
      measure(options_, group);
    else
      serve(options_, group);
    return runtime::kDone;
  }
  std::string work() const override { return "the timing"; }

 private:
  Options options_;
};

}  // namespace

int main(int argc, char** argv) {
  TrainStepProgram program;
  return runtime::run_program(program, argc, argv);
}
