#include "signal_filter.h"

#include <ATen/ATen.h>

namespace memsieve {

namespace {

class SignalFilter final : public Filter {
 public:
  SignalFilter(std::string name, double timestep_min) : name_(std::move(name)), timestep_min_(timestep_min) {}

  Needs needs() const override { return {.signals = {name_}, .timestep_min = timestep_min_}; }
  at::Tensor score(const SignalView& view) const override { return view.signal(name_); }

 private:
  std::string name_;
  double timestep_min_;
};

}  // namespace

FilterEntry signal_filter(const std::string& name, const std::string& doc) {
  Schema options;
  options.real("timestep_min", 0, 0, 1e9, "rows below this timestep are not scored");
  return {name, doc, options, [name](const Settings& settings) {
            return std::make_unique<SignalFilter>(name, settings.real("timestep_min"));
          }};
}

}  // namespace memsieve
