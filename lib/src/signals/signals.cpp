#include "signals/signals.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>

#include <algorithm>
#include <limits>

#include "full_precision.h"
#include "nan.h"
#include "signals/features.h"
#include "to_device.h"

namespace memsieve {

namespace {

/// How a name of a counterfactual prediction is supplied.
const Counterfactual& supplier(const Batch& batch, const std::string& name) {
  static const Counterfactual none;
  const auto it = batch.counterfactuals.find(name);
  if (it != batch.counterfactuals.end()) return it->second;
  return name == "null" ? batch.null_prediction : none;
}

}  // namespace

Signals::Signals(std::vector<Channel> channels, const SignalRegistry& registry, at::Device device, bool likeness)
    : channels_(std::move(channels)),
      device_(device),
      likeness_(likeness),
      timestep_min_(std::numeric_limits<double>::max()) {
  const auto is_read = [&](const SignalEntry& signal) {
    return signal.name == "prediction_error" ||
           std::any_of(channels_.begin(), channels_.end(), [&](const Channel& channel) {
             const auto& names = channel.needs.signals;
             return std::find(names.begin(), names.end(), signal.name) != names.end();
           });
  };
  for (const auto& signal : registry.entries()) {
    if (is_read(signal)) (signal.counterfactual.empty() ? free_ : counterfactual_).push_back(signal);
  }
  for (const auto& channel : channels_) {
    if (channel.counterfactual) timestep_min_ = std::min(timestep_min_, channel.needs.timestep_min);
  }
}

at::Tensor Signals::measured(const SignalEntry& signal, const SignalRows& rows) const {
  at::Tensor values;
  try {
    const FullPrecision full_precision;
    values = signal.measure(rows);
  } catch (const std::exception& error) {
    std::throw_with_nested(Error("signal " + signal.name + ": " + one_line(error)));
  }
  if (!values.defined() || values.sizes() != rows.timestep.sizes()) {
    throw Error("signal " + signal.name + ": must have the shape [" + std::to_string(rows.timestep.size(0)) + "]");
  }
  return values.to(at::kFloat);
}

void Signals::measure_free(const SignalRows& rows, SignalView& view, RawScores& s) const {
  for (const auto& signal : free_) {
    const auto values = measured(signal, rows);
    const auto broken = at::isfinite(values).logical_not();
    s.nonfinite = s.nonfinite.defined() ? s.nonfinite | broken : broken;
    view.signals[signal.name] = values;
  }
  view.prediction_error = view.signals.at("prediction_error");
  score_channels(view, false, s);
}

std::string Signals::who_reads(const SignalEntry& signal) const {
  std::string who;
  for (const auto& channel : channels_) {
    const auto& names = channel.needs.signals;
    if (std::find(names.begin(), names.end(), signal.name) != names.end())
      who += (who.empty() ? "" : ", ") + channel.name;
  }
  return who;
}

void Signals::measure_counterfactual(const Batch& batch, const SignalRows& rows, const at::Tensor& chosen,
                                     SignalView& view, RawScores& s, std::set<std::string>& asked) const {
  SignalRows some{rows.timestep.index_select(0, chosen),
                  rows.prediction.index_select(0, chosen),
                  rows.target.index_select(0, chosen),
                  {}};
  s.probed = s.probed.index_fill(0, chosen, true);
  std::map<std::string, at::Tensor> made;
  for (const auto& signal : counterfactual_) {
    const std::string& name = signal.counterfactual;
    if (made.count(name) == 0) {
      asked.insert(name);
      made[name] = supplier(batch, name)(chosen).detach().to(at::kFloat);
      if (made[name].sizes() != some.prediction.sizes()) {
        throw DataError((name == "null" ? "null_prediction" : "counterfactuals[\"" + name + "\"]") +
                        " returned another shape than prediction's");
      }
    }
    some.counterfactual = made[name];
    const auto values = view.signals[signal.name].index_copy(0, chosen, measured(signal, some));
    s.nonfinite = s.nonfinite | (s.probed & at::isfinite(values).logical_not());
    view.signals[signal.name] = values;
  }
}

void Signals::score_channels(const SignalView& view, bool counterfactual, RawScores& s) const {
  const FullPrecision full_precision;
  for (size_t c = 0; c < channels_.size(); ++c) {
    const auto& channel = channels_[c];
    if (channel.counterfactual != counterfactual) continue;
    at::Tensor score;
    try {
      score = channel.filter->score(view);
    } catch (const std::exception& error) {
      std::throw_with_nested(Error("filter " + channel.name + ": " + one_line(error)));
    }
    if (!score.defined() || score.sizes() != view.timestep.sizes()) {
      throw Error("filter " + channel.name + ": score must have shape [" + std::to_string(view.timestep.size(0)) + "]");
    }
    const auto valid = s.captioned & (view.timestep >= channel.needs.timestep_min);
    s.raw.select(1, static_cast<int64_t>(c)).copy_(score.masked_fill(valid.logical_not(), kNaN));
  }
}

std::vector<std::string> Signals::counterfactuals() const {
  std::vector<std::string> names;
  for (const auto& signal : counterfactual_) {
    if (std::find(names.begin(), names.end(), signal.counterfactual) == names.end())
      names.push_back(signal.counterfactual);
  }
  return names;
}

void Signals::ask_rest(const Batch& batch, int64_t rows, const std::set<std::string>& asked) const {
  const at::NoGradGuard no_grad;
  for (const auto& name : counterfactuals()) {
    if (asked.count(name) > 0 || !supplier(batch, name)) continue;
    try {
      supplier(batch, name)(at::zeros({rows}, at::device(device_).dtype(at::kLong)));
    } catch (...) {  // the batch is lost for what is known already
    }
  }
}

void Signals::require_predictions(const Batch& batch) const {
  for (const auto& signal : counterfactual_) {
    const std::string& name = signal.counterfactual;
    if (supplier(batch, name)) continue;
    throw DataError("batch: the counterfactual prediction '" + name + "' is missing, but the signal " + signal.name +
                    " (filter " + who_reads(signal) + ") needs it; set " +
                    (name == "null" ? "Batch::null_prediction" : "Batch::counterfactuals[\"" + name + "\"]"));
  }
}

RawScores Signals::unmeasured(const Batch& batch, const SignalRows& rows) const {
  RawScores s;
  s.elements = rows.prediction[0].numel();
  s.timestep = rows.timestep;
  s.captioned = batch.has_caption.defined() ? to_device(batch.has_caption, device_).to(at::kBool)
                                            : at::ones_like(s.timestep, at::kBool);
  if (batch.exempt.defined()) {
    s.exempt = to_device(batch.exempt, device_).to(at::kBool);
    s.captioned = s.captioned & s.exempt.logical_not();
  }
  if (batch.stratum.defined()) s.stratum = to_device(batch.stratum, device_);
  s.raw = at::full({s.timestep.size(0), static_cast<int64_t>(channels_.size())}, kNaN, s.timestep.options());
  s.probed = at::zeros_like(s.captioned);
  return s;
}

at::Tensor Signals::likeness(const Batch& batch) const {
  if (!likeness_ || !batch.likeness.defined()) return {};
  return project_likeness(to_device(batch.likeness.detach(), device_));
}

RawScores Signals::measure(const Batch& batch, const ChooseRows& choose, std::set<std::string>& asked) const {
  require_predictions(batch);
  const SignalRows rows{to_device(batch.timestep.detach(), device_).to(at::kFloat),
                        batch.prediction.detach().to(at::kFloat),
                        batch.target.detach().to(at::kFloat),
                        {}};
  RawScores s = unmeasured(batch, rows);
  SignalView view{s.timestep, {}, at::full_like(s.timestep, kNaN), s.elements};
  for (const auto& signal : counterfactual_) view.signals[signal.name] = view.magnitude;
  measure_free(rows, view, s);
  if (!counterfactual_.empty()) {
    const auto eligible = s.captioned & (s.timestep >= timestep_min_);
    const auto chosen = choose(s, eligible);
    if (chosen.size(0) > 0) measure_counterfactual(batch, rows, chosen, view, s, asked);
    s.probed = s.probed & eligible;
    const auto magnitude = view.signals.find("magnitude");
    if (magnitude != view.signals.end()) view.magnitude = magnitude->second;
    score_channels(view, true, s);
  }
  s.nonfinite = s.nonfinite | at::isinf(s.raw).any(1);
  return s;
}

}  // namespace memsieve
