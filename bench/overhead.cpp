// Step time of the plain loop, of the published filter and of ours, on the demo's model and data, interleaved in
// one process.
//   memsieve-bench-overhead [--rounds 10] [--steps 16]
// Each round runs a few steps of every variant, so that a change of the machine's speed meets them all; the ratios are
// medians over rounds. The last line is one JSON object.
#include "run.h"

#include <memsieve/error.h>
#include <runtime/run_program.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

namespace {

namespace po = boost::program_options;
using memsieve::bench::median;
using memsieve::bench::Run;
using memsieve::runtime::ExitCode;
using memsieve::runtime::Group;
using memsieve::runtime::ProgramOptions;

struct Variant {
  std::string name;
  Run run;
  /// milliseconds per step, of each round
  std::vector<double> times;
};

void bench(int64_t rounds, int64_t steps, Group& group) {
  std::vector<Variant> variants;
  const std::string batch = "train_batch_size=32";
  variants.push_back({"plain", Run("configs/demo.yaml", {batch, "filter=off"}, group), {}});
  variants.push_back({"published", Run("configs/demo_published.yaml", {batch}, group), {}});
  variants.push_back({"ours", Run("configs/demo.yaml", {batch}, group), {}});
  for (auto& v : variants) v.run.steps(2);
  for (int64_t round = 0; round < rounds; ++round) {
    std::cout << "round " << round + 1 << ":";
    for (auto& v : variants) {
      v.times.push_back(v.run.steps(steps).wall_ms);
      std::cout << " " << v.name << " " << v.times.back() << " ms" << std::flush;
    }
    std::cout << "\n";
  }
  nlohmann::json out;
  out["plain_ms"] = median(variants[0].times);
  for (size_t i = 1; i < variants.size(); ++i) {
    std::vector<double> ratios;
    for (size_t r = 0; r < variants[i].times.size(); ++r) ratios.push_back(variants[i].times[r] / variants[0].times[r]);
    out[variants[i].name] = median(ratios);
    out[variants[i].name + "_range"] = {*std::min_element(ratios.begin(), ratios.end()),
                                        *std::max_element(ratios.begin(), ratios.end())};
  }
  out["batch"] = 32;
  out["rounds"] = rounds;
  out["device"] = group.device().str();
  std::cout << out.dump() << "\n";
}

class OverheadProgram : public memsieve::runtime::Program {
 public:
  bool parse(int argc, char** argv) override {
    po::options_description options("memsieve-bench-overhead");
    options.add_options()("rounds", po::value(&rounds_)->default_value(10), "interleaved rounds");
    options.add_options()("steps", po::value(&steps_)->default_value(16),
                          "steps of each variant in a round; of 16 one has held-out and revisited rows");
    options.add_options()("help", "this text");
    po::variables_map given;
    try {
      po::store(po::parse_command_line(argc, argv, options), given);
      po::notify(given);
    } catch (const po::error& error) {
      throw memsieve::ConfigError(error.what());
    }
    if (given.count("help") > 0) {
      std::cout << options;
      return false;
    }
    if (rounds_ < 1 || steps_ < 1) throw memsieve::ConfigError("--rounds and --steps must be at least 1");
    return true;
  }
  std::optional<ProgramOptions> configure(const memsieve::runtime::Launch&) override { return ProgramOptions{}; }
  ExitCode run(Group& group) override {
    bench(rounds_, steps_, group);
    return memsieve::runtime::kDone;
  }
  std::string work() const override { return "the timing"; }

 private:
  int64_t rounds_ = 0, steps_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  OverheadProgram program;
  return memsieve::runtime::run_program(program, argc, argv);
}
