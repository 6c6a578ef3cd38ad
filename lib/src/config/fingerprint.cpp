#include "config/fingerprint.h"

#include <ATen/ATen.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>
#include <memsieve/plugin.h>

#include <array>
#include <sstream>

#include "record/record.h"

namespace memsieve {

namespace {

/// FNV-1a, cut to the 52 bits that a float64 holds exactly.
double digest(const std::string& text) {
  return static_cast<double>(detail::fnv1a(text.data(), text.size()) >> 12);
}

std::string describe(const Setup& setup) {
  std::ostringstream out;
  out << setup.dataset_size << ' ' << setup.rows_per_micro_batch << ' ' << setup.micro_batches << ' '
      << setup.num_timesteps << ' ' << setup.held_out_size << ' ' << setup.strata << ' '
      << setup.samples.value_or(setup.dataset_size) << ' ' << c10::DeviceTypeName(setup.device.type());
  for (int64_t group : setup.group_id) out << ' ' << group;
  return out.str();
}

std::string build(const Setup& setup) {
  const MemsieveStamp stamp = MEMSIEVE_STAMP_INITIALIZER;
  std::ostringstream out;
  out << stamp.memsieve_abi << ' ' << stamp.gxx_abi << ' ' << stamp.cxx11_strings << ' ' << stamp.torch;
  for (const auto& entry : setup.filters.entries()) out << ' ' << entry.name << ' ' << entry.options.markdown();
  for (const auto& entry : setup.filters.signals().entries()) out << ' ' << entry.name << ' ' << entry.counterfactual;
  return out.str();
}

}  // namespace

Fingerprint fingerprint(const Settings& settings, const Setup& setup) {
  return {digest(settings.yaml()), digest(describe(setup)), digest(build(setup)), ""};
}

void require_agreement(Communicator& communicator, const Fingerprint& mine, at::Device device) {
  RecordBuilder record({}, device);
  if (!mine.error.empty()) record.fail(mine.error);
  const auto prints = at::tensor({mine.configuration, mine.setup, mine.build}, at::kDouble).to(device);
  const auto all = communicator.all_gather(at::cat({record.flat(), prints})).to(at::kCPU);
  if (!mine.error.empty()) return;  // this rank throws its own error
  const std::string error = first_error(all);
  if (!error.empty()) throw PeerError(error);
  const std::array<const char*, 3> names{"the sieve's configuration",
                                         "the loop's setup (data set size, batch size, ...)",
                                         "the build (memsieve, torch, compiler, plug-ins)"};
  const auto values = all.accessor<double, 2>();
  const int64_t first = all.size(1) - static_cast<int64_t>(names.size());
  for (int64_t rank = 1; rank < all.size(0); ++rank) {
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t column = first + static_cast<int64_t>(i);
      if (values[rank][column] == values[0][column]) continue;
      throw ConfigError("rank " + std::to_string(rank) + " differs from rank 0 in " + names[i] +
                        "; start all ranks alike");
    }
  }
}

}  // namespace memsieve
