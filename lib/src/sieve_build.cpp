// How a Sieve is built: the same on all ranks or on none.
#include <ATen/ATen.h>
#include <memsieve/plugin.h>

#include "config/fingerprint.h"
#include "sieve_impl.h"

namespace memsieve {

namespace {

struct Prepared {
  Settings settings;
  Setup setup;
};

void check_setup(const Setup& setup) {
  const auto at_least = [](int64_t low, int64_t value, const char* name) {
    if (value < low)
      throw ConfigError(std::string("Setup::") + name + ": is " + std::to_string(value) + ", must be at least " +
                        std::to_string(low));
  };
  at_least(1, setup.dataset_size, "dataset_size");
  at_least(1, setup.rows_per_micro_batch, "rows_per_micro_batch");
  at_least(1, setup.micro_batches, "micro_batches");
  at_least(1, setup.num_timesteps, "num_timesteps");
  at_least(0, setup.held_out_size, "held_out_size");
  at_least(1, setup.strata, "strata");
  if (const int64_t samples = setup.samples.value_or(1); samples < 1 || samples > setup.dataset_size) {
    throw ConfigError("Setup::samples: is " + std::to_string(samples) + ", must be 1 to dataset_size = " +
                      std::to_string(setup.dataset_size) + "; leave it out where ids have no gaps");
  }
  if (!setup.group_id.empty() && static_cast<int64_t>(setup.group_id.size()) != setup.dataset_size) {
    throw ConfigError("Setup::group_id: has " + std::to_string(setup.group_id.size()) + " entries for " +
                      std::to_string(setup.dataset_size) + " samples");
  }
}

Prepared parse(const std::string& yaml, const std::string& source, const Setup& given) {
  Setup own = given;
  load_plugins(plugins_named(yaml, source, given.overrides), own.filters);
  Schema root;
  root.section("sieve", sieve_schema(own.filters), "the sieve");
  return {resolve(yaml, source, root, given.overrides).section("sieve"), own};
}

}  // namespace

Sieve::Impl::Impl(const Settings& settings, std::shared_ptr<Communicator> comm, const Setup& given)
    : Impl(Configuration::read(settings, given), settings.yaml(), std::move(comm), given) {}

Sieve::Impl::Impl(Configuration configuration, const std::string& yaml, std::shared_ptr<Communicator> comm,
                  const Setup& given)
    : setup(given),
      communicator(std::move(comm)),
      options(configuration.record),
      ranks(communicator->size()),
      shape{static_cast<int64_t>(configuration.channels.size()),
            given.micro_batches,
            given.rows_per_micro_batch,
            (configuration.judge.held_out.rows + ranks - 1) / ranks,
            (configuration.judge.revisit.rows + ranks - 1) / ranks,
            configuration.judge.probe.likeness > 0 ? kLikenessWidth : 0},
      flags(configuration.judge, given),
      signals(std::move(configuration.channels), setup.filters.signals(), setup.device, shape.likeness > 0),
      judge(configuration.judge, setup, ranks),
      record(shape, given.device),
      reporter(options, given, shape, communicator->rank(), yaml,
               [this](int64_t step, const Gathered& records) { flags.add(step, records); }),
      seen(given.micro_batches),
      halted(at::zeros({}, at::device(given.device).dtype(at::kBool))) {}

template <typename Prepare>
std::unique_ptr<Sieve::Impl> Sieve::Impl::agreed(const std::shared_ptr<Communicator>& comm, at::Device device,
                                                 Prepare prepare) {
  std::unique_ptr<Impl> mine;
  std::exception_ptr error;
  Fingerprint print;
  try {
    const Prepared p = prepare();
    check_setup(p.setup);
    print = fingerprint(p.settings, p.setup);
    mine = std::make_unique<Impl>(p.settings, comm, p.setup);
  } catch (...) {
    error = std::current_exception();
    print.error = one_line(error);
  }
  require_agreement(*comm, print, device);
  if (error) std::rethrow_exception(error);
  return mine;
}

Schema Sieve::schema(const FilterRegistry& filters) {
  return sieve_schema(filters);
}

Sieve Sieve::from_settings(const Settings& settings, const std::shared_ptr<Communicator>& communicator,
                           const Setup& setup) {
  return Sieve(Impl::agreed(communicator, setup.device, [&] { return Prepared{settings, setup}; }));
}

Sieve Sieve::from_text(const std::string& yaml, const std::string& source,
                       const std::shared_ptr<Communicator>& communicator, const Setup& setup) {
  return Sieve(Impl::agreed(communicator, setup.device, [&] { return parse(yaml, source, setup); }));
}

Sieve Sieve::from_yaml(const std::string& path, const std::shared_ptr<Communicator>& communicator, const Setup& setup) {
  return Sieve(Impl::agreed(communicator, setup.device, [&] { return parse(read_text_file(path), path, setup); }));
}

Sieve::Sieve(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sieve::Sieve(Sieve&&) noexcept = default;
Sieve& Sieve::operator=(Sieve&&) noexcept = default;
Sieve::~Sieve() = default;

std::vector<std::string> Sieve::channels() const {
  return impl_->options.channels;
}

std::vector<std::string> Sieve::counterfactuals() const {
  return impl_->signals.counterfactuals();
}

std::vector<std::string> Sieve::warnings() const {
  auto lines = impl_->judge.warnings();
  const auto& options = impl_->judge.options();
  if (options.action.pass_over && options.revisit.rows == 0)
    lines.emplace_back(
        "samples that are passed over never come back: nothing looks at them again; set revisit.rows to 4 or so");
  // Groups tell which samples are copies without it.
  if (options.probe.likeness > 0 && !options.evidence.pools_groups() && impl_->inspected && !impl_->likeness_given)
    lines.emplace_back(
        "no batch had Batch::likeness (Python: likeness=), so copies of a picture are not judged together; give features "
        "in which they are alike, or set probe.likeness to 0");
  if (const std::string note = impl_->reporter.ledger_note(); !note.empty()) lines.push_back(note);
  return lines;
}

}  // namespace memsieve
