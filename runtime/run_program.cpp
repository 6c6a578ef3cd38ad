#include <c10/core/DeviceGuard.h>
#include <runtime/heap.h>
#include <runtime/launch.h>
#include <runtime/log.h>
#include <runtime/run_program.h>
#include <runtime/stop.h>
#include <runtime/torch_warnings.h>

#include <cstdlib>
#include <functional>

namespace memsieve::runtime {

namespace {

/// What `body` returns; an error is reported on the rank that it happened on.
ExitCode reported(const Program& program, const std::function<ExitCode()>& body, bool& failed) {
  failed = true;
  try {
    const ExitCode code = body();
    failed = false;
    return code;
  } catch (const std::exception& error) {
    log_error(error_line(error, program.work()));
    return exit_code_of(error);
  } catch (...) {
    log_error(program.work() + ": an error that is no std::exception");
    return kOtherError;
  }
}

ExitCode run_on_this_rank(Program& program) {
  const Launch launch = launch_from_environment();
  log_as(launch.rank, launch.world_size);
  const auto options = program.configure(launch);
  if (!options) return kDone;
  route_torch_warnings();
  const c10::Device device = choose_device(launch, options->device);
  c10::OptionalDeviceGuard guard;
  if (!device.is_cpu()) guard.reset_device(device);
  Group group(launch, device, options->group);
  bool failed = false;
  const ExitCode code = reported(
      program, [&] { return program.run(group); }, failed);
  if (failed && launch.world_size > 1) std::_Exit(code);
  return code;
}

}  // namespace

int run_program(Program& program, int argc, char** argv) {
  catch_stop_signals();
  keep_freed_memory();
  bool failed = false;
  return reported(
      program, [&] { return program.parse(argc, argv) ? run_on_this_rank(program) : kDone; }, failed);
}

}  // namespace memsieve::runtime
