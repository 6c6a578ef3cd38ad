#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/loop/counterfactuals.h>

namespace memsieve::trainer {

namespace {

Question question(const NoisyRows& rows) {
  return {rows.noisy, rows.timestep, rows.condition};
}

Question chosen(const Question& rows, const at::Tensor& which) {
  return {rows.noisy.index_select(0, which), rows.timestep.index_select(0, which), rows.condition.select(which)};
}

Question with(const Question& first, const Question& more) {
  return {at::cat({first.noisy, more.noisy}), at::cat({first.timestep, more.timestep}),
          cat(first.condition, more.condition)};
}

Question uncaptioned(Question rows, const Conditioning& empty) {
  rows.condition = rows.condition.uncaptioned(empty);
  return rows;
}

}  // namespace

Batch batch_of(const NoisyRows& rows, const at::Tensor& prediction) {
  Batch batch;
  batch.sample_id = rows.ids;
  batch.timestep = rows.timestep;
  batch.prediction = prediction;
  batch.target = rows.target;
  batch.has_caption = rows.captioned;
  batch.likeness = rows.likeness;
  return batch;
}

std::map<std::string, Counterfactual> Counterfactuals::of(const NoisyRows& rows, const Conditioning& empty) {
  std::map<std::string, Counterfactual> made;
  const Question all = question(rows);
  made["null"] = [this, all, empty](const at::Tensor& which) { return null(all, empty, which); };
  if (start_ != nullptr) made["start"] = [this, all](const at::Tensor& which) { return start(all, which); };
  return made;
}

std::map<std::string, Counterfactual> Counterfactuals::of_held_out(const Conditioning& empty,
                                                                   const Conditioning& empty_of_looks) {
  std::map<std::string, Counterfactual> made;
  made["null"] = [this, empty, empty_of_looks](const at::Tensor& which) {
    return null_of_held_out(empty, empty_of_looks, which);
  };
  if (start_ != nullptr) made["start"] = [this](const at::Tensor& which) { return start_of_waiting(0, which); };
  return made;
}

std::map<std::string, Counterfactual> Counterfactuals::of_looks(const Conditioning& empty) {
  std::map<std::string, Counterfactual> made;
  made["null"] = [this, empty](const at::Tensor& which) { return null_of_looks(empty, which); };
  if (start_ == nullptr) return made;
  made["start"] = [this](const at::Tensor& which) { return start_of_waiting(waiting_.value().held_out, which); };
  return made;
}

void Counterfactuals::await(const std::optional<NoisyRows>& held_out, const std::optional<NoisyRows>& looks) {
  const auto rows = [&] {
    if (!looks) return question(held_out.value());
    return held_out ? with(question(*held_out), question(*looks)) : question(*looks);
  };
  waiting_ = Waiting{rows(), held_out ? held_out->noisy.size(0) : 0, {}, {}, {}};
}

at::Tensor Counterfactuals::ask_model(const Question& question) {
  const at::NoGradGuard no_grad;
  return model_.predict(question.noisy, question.timestep, question.condition);
}

const at::Tensor& Counterfactuals::awaited() {
  Waiting& w = waiting_.value();
  if (!w.prediction.defined()) w.prediction = ask_model(w.rows);
  return w.prediction;
}

at::Tensor Counterfactuals::null(const Question& rows, const Conditioning& empty, const at::Tensor& which) {
  const Question ask = uncaptioned(chosen(rows, which), empty);
  if (!waiting_ || waiting_->prediction.defined()) return ask_model(ask);
  const at::Tensor both = ask_model(with(ask, waiting_->rows));
  waiting_->prediction = both.slice(0, which.size(0));
  return both.slice(0, 0, which.size(0));
}

at::Tensor Counterfactuals::null_of_held_out(const Conditioning& empty, const Conditioning& empty_of_looks,
                                             const at::Tensor& which) {
  Waiting& w = waiting_.value();
  const Question ask = uncaptioned(chosen(w.rows, which), empty);
  const int64_t rows = w.rows.noisy.size(0);
  if (rows == w.held_out) return ask_model(ask);
  const at::Tensor looks = at::arange(w.held_out, rows, which.options());
  const at::Tensor both = ask_model(with(ask, uncaptioned(chosen(w.rows, looks), empty_of_looks)));
  w.looks_null = both.slice(0, which.size(0));
  return both.slice(0, 0, which.size(0));
}

at::Tensor Counterfactuals::null_of_looks(const Conditioning& empty, const at::Tensor& which) {
  const Waiting& w = waiting_.value();
  if (w.looks_null.defined()) return w.looks_null.index_select(0, which);
  return ask_model(uncaptioned(chosen(w.rows, which + w.held_out), empty));
}

at::Tensor Counterfactuals::start(const Question& rows, const at::Tensor& which) {
  const Question ask = chosen(rows, which);
  if (!waiting_ || waiting_->start.defined()) return start_->predict(ask.noisy, ask.timestep, ask.condition);
  const Question more = with(ask, waiting_->rows);
  const at::Tensor both = start_->predict(more.noisy, more.timestep, more.condition);
  waiting_->start = both.slice(0, which.size(0));
  return both.slice(0, 0, which.size(0));
}

at::Tensor Counterfactuals::start_of_waiting(int64_t first, const at::Tensor& which) {
  Waiting& w = waiting_.value();
  const at::Tensor rows = first > 0 ? which + first : which;
  if (!w.start.defined()) w.start = start_->predict(w.rows.noisy, w.rows.timestep, w.rows.condition);
  return w.start.index_select(0, rows);
}

}  // namespace memsieve::trainer
