#include "signal_filter.h"

#include <ATen/ATen.h>

#include <limits>

namespace memsieve {

namespace {

class SignalFilter final : public Filter {
 public:
  SignalFilter(std::string name, double timestep_min, double least)
      : name_(std::move(name)), timestep_min_(timestep_min), least_(least) {}

  Needs needs() const override { return {.signals = {name_}, .timestep_min = timestep_min_}; }
  at::Tensor score(const SignalView& view) const override {
    const auto& signal = view.signal(name_);
    return least_ > 0 ? signal.masked_fill(signal.abs() < least_, std::numeric_limits<float>::quiet_NaN()) : signal;
  }

 private:
  std::string name_;
  double timestep_min_;
  double least_;
};

}  // namespace

FilterEntry signal_filter(const std::string& name, const std::string& doc, double least) {
  Schema options;
  options.real("timestep_min", 0, 0, 1e9, "rows below this timestep are not scored");
  return {name, doc, options, [name, least](const Settings& settings) {
            return std::make_unique<SignalFilter>(name, settings.real("timestep_min"), least);
          }};
}

}  // namespace memsieve
