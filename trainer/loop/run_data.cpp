#include <ATen/ATen.h>
#include <trainer/loop/run_data.h>

#include <boost/crc.hpp>
#include <sstream>

namespace memsieve::trainer {

namespace {

std::string identity_of(const Dataset& data) {
  std::vector<int64_t> some;
  for (int64_t i = 0; i < 64; ++i) some.push_back(i * (data.size() - 1) / 63);
  boost::crc_32_type crc;
  for (const auto& caption : data.captions(some)) crc.process_bytes(caption.data(), caption.size() + 1);
  crc.process_bytes(data.group_ids().data(), data.group_ids().size() * sizeof(int64_t));
  std::ostringstream out;
  out << data.size() << " rows of " << at::IntArrayRef(data.latent_shape()) << ", captions " << std::hex
      << crc.checksum();
  return out.str();
}

}  // namespace

RunData::RunData(const RunDataOptions& options, c10::Device device) : schedule(options.schedule, device) {
  const DatasetOptions plain{.cache_bytes = options.cache_bytes};
  DatasetOptions trained = plain;
  trained.flips = options.random_flip;
  const auto open = [&](std::optional<RowMaker>& into, const std::string& path, const DatasetOptions& how) {
    if (!path.empty()) into.emplace(Dataset::open(path, how), schedule, device);
    if (into && training) training->data().check_matches(into->data());
  };
  open(training, options.train, trained);
  open(held_out, options.held_out, trained);
  open(validation, options.validation, plain);
  open(forget, options.forget, trained);
  if (!options.prompts.empty()) {
    prompts = Dataset::open(options.prompts, plain);
    training->data().check_matches(*prompts);
  }
  identity = identity_of(training->data()) + (held_out ? "; held out: " + identity_of(held_out->data()) : "") +
             (forget ? "; forget: " + identity_of(forget->data()) : "");
}

void RunData::require_unchanged() const {
  for (const auto* maker : {&training, &held_out, &validation, &forget})
    if (*maker) (*maker)->data().require_unchanged();
  if (prompts) prompts->require_unchanged();
}

}  // namespace memsieve::trainer
