// Step time of the plain loop, of the published filter and of ours, on the demo's model and data, interleaved
// in one process.
//   memsieve-bench-overhead [--rounds 10] [--steps 6]
// Each round runs a few steps of every variant, so that a change of the machine's speed meets them all; the
// ratios are medians over rounds. The last line is one JSON object.
#include <trainer/dist/launch.h>
#include <trainer/loop/reference.h>
#include <trainer/loop/train_step.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

namespace {

namespace po = boost::program_options;
using namespace memsieve::trainer;

struct Variant {
  std::string name;
  TrainConfig config;
  std::unique_ptr<Session> session;
  std::unique_ptr<TrainStep> step;
  int64_t done = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::unique_ptr<Variant> open(const std::string& name, const std::string& file,
                              const std::vector<std::string>& overrides, Group& group) {
  auto v = std::make_unique<Variant>();
  v->name = name;
  v->config = read_config(file, overrides);
  v->session = std::make_unique<Session>(v->config, group, /*dry=*/true);
  v->step = std::make_unique<TrainStep>(*v->session);
  Session& s = *v->session;
  if (s.sieve && s.sieve->reference_draws() > 0) {
    reference_pass(*s.sieve, *s.model, *s.training, s.held_out ? &*s.held_out : nullptr, group, v->config);
  }
  return v;
}

/// Mean milliseconds of `steps` steps; reading the last result waits for a GPU.
double run(Variant& v, int64_t steps) {
  const auto begin = std::chrono::steady_clock::now();
  at::Tensor last;
  for (int64_t i = 0; i < steps; ++i) last = v.step->run(v.done++);
  last.to(at::kCPU);
  if (v.session->sieve) v.session->sieve->take_reports();
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
  return time.count() / static_cast<double>(steps);
}

int bench(int64_t rounds, int64_t steps) {
  const Launch launch = launch_from_environment();
  const c10::Device device = choose_device(launch, "auto");
  Group group(launch, device, {});
  const std::vector<std::string> common{"train_batch_size=32", "validation.every=0", "sampling.every=0"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), common.begin(), common.end());
    return more;
  };
  std::vector<std::unique_ptr<Variant>> variants;
  variants.push_back(open("plain", "configs/demo.yaml", with({"filter=off"}), group));
  variants.push_back(open("published", "configs/demo_published.yaml", common, group));
  // One draw instead of five: the pass before training is not part of a step.
  variants.push_back(open("ours", "configs/demo.yaml", with({"sieve.reference.draws=1"}), group));
  for (auto& v : variants) run(*v, 2);
  std::vector<std::vector<double>> times(variants.size());
  for (int64_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < variants.size(); ++i) times[i].push_back(run(*variants[i], steps));
    std::cout << "round " << round + 1 << ": plain " << times[0].back() << " ms, published "
              << times[1].back() << " ms, ours " << times[2].back() << " ms\n"
              << std::flush;
  }
  nlohmann::json out;
  out["plain_ms"] = median(times[0]);
  for (size_t i = 1; i < variants.size(); ++i) {
    std::vector<double> ratios;
    for (size_t r = 0; r < times[i].size(); ++r) ratios.push_back(times[i][r] / times[0][r]);
    out[variants[i]->name] = median(ratios);
    out[variants[i]->name + "_range"] = {*std::min_element(ratios.begin(), ratios.end()),
                                         *std::max_element(ratios.begin(), ratios.end())};
  }
  out["batch"] = 32;
  out["rounds"] = rounds;
  out["device"] = device.str();
  std::cout << out.dump() << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  po::options_description options("memsieve-bench-overhead");
  int64_t rounds = 0, steps = 0;
  options.add_options()("rounds", po::value(&rounds)->default_value(10), "interleaved rounds");
  options.add_options()("steps", po::value(&steps)->default_value(6), "steps of each variant in a round");
  options.add_options()("help", "this text");
  try {
    po::variables_map given;
    po::store(po::parse_command_line(argc, argv, options), given);
    po::notify(given);
    if (given.count("help") > 0) {
      std::cout << options;
      return 0;
    }
    if (rounds < 1 || steps < 1) throw std::invalid_argument("--rounds and --steps must be at least 1");
    return bench(rounds, steps);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
