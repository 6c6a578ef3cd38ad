// memsieve-train: the example trainer's command line.
#include <c10/core/DeviceGuard.h>
#include <memsieve/error.h>
#include <trainer/dist/group.h>
#include <trainer/dist/launch.h>
#include <trainer/loop/config.h>
#include <trainer/loop/log.h>
#include <trainer/loop/stop.h>
#include <trainer/loop/train.h>
#include <trainer/loop/warnings.h>

#include <boost/program_options.hpp>
#include <cstdlib>
#include <iostream>

namespace {

namespace po = boost::program_options;
using namespace memsieve;
using namespace memsieve::trainer;

constexpr const char* kVersion = "memsieve-train 0.1.0";

struct CommandLine {
  std::string config;
  std::vector<std::string> overrides;
  bool print_config = false, dry_run = false, answered = false;
};

CommandLine parse(int argc, char** argv) {
  po::options_description options("memsieve-train --config FILE [options]");
  options.add_options()("config", po::value<std::string>(), "YAML file (keys: docs/configuration.md)");
  options.add_options()("set", po::value<std::vector<std::string>>()->composing(),
                        "a.b=c: overrides a key; may be repeated");
  options.add_options()("resume-from", po::value<std::string>(), "'latest' or a checkpoint folder");
  options.add_options()("print-config", "print the configuration with all defaults filled in, and exit");
  options.add_options()("dry-run",
                        "check configuration, data, model and sieve without training or writing anything");
  options.add_options()("help", "this text")("version", "the version");
  CommandLine line;
  po::variables_map given;
  try {
    po::store(po::command_line_parser(argc, argv).options(options).run(), given);
    po::notify(given);
  } catch (const po::error& error) {
    throw ConfigError(std::string(error.what()) + "; see memsieve-train --help");
  }
  line.answered = given.count("help") + given.count("version") > 0;
  if (given.count("help") > 0)
    std::cout << options;
  else if (given.count("version") > 0)
    std::cout << kVersion << "\n";
  if (line.answered) return line;
  if (given.count("config") == 0) throw ConfigError("--config FILE is missing; see memsieve-train --help");
  line.config = given["config"].as<std::string>();
  if (given.count("set") > 0) line.overrides = given["set"].as<std::vector<std::string>>();
  if (given.count("resume-from") > 0) {
    line.overrides.push_back("resume_from_checkpoint=" + given["resume-from"].as<std::string>());
  }
  line.print_config = given.count("print-config") > 0;
  line.dry_run = given.count("dry-run") > 0;
  return line;
}

/// Reports an error on the rank it happened on. A line more than 1 would hide what matters.
ExitCode report(const std::exception& error) {
  const std::string text = error.what();
  log_error(text.substr(0, text.find('\n')));
  return exit_code_of(error);
}

ExitCode run(const CommandLine& line) {
  const Launch launch = launch_from_environment();
  log_as(launch.rank, launch.world_size);
  const TrainConfig config = read_config(line.config, line.overrides);
  if (line.print_config) {
    if (launch.rank == 0) std::cout << config.settings.yaml();
    return kDone;
  }
  catch_stop_signals();
  route_torch_warnings();
  const c10::Device device = choose_device(launch, config.device);
  c10::OptionalDeviceGuard guard;
  if (!device.is_cpu()) guard.reset_device(device);
  GroupOptions options;
  options.collective_seconds = config.collective_seconds;
  Group group(launch, device, options);
  try {
    return train(config, group, line.dry_run);
  } catch (const std::exception& error) {
    const ExitCode code = report(error);
    // Peers may be gone or stuck in a collective: leave without waiting for them in destructors.
    if (launch.world_size > 1) std::_Exit(code);
    return code;
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const CommandLine line = parse(argc, argv);
    return line.answered ? kDone : run(line);
  } catch (const std::exception& error) {
    return report(error);
  }
}
