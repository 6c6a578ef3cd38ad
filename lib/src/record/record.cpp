#include "record/record.h"

#include <ATen/ATen.h>

#include "nan.h"

namespace memsieve {

namespace {
/// Length of the longest part of UTF-8 `text` that has at most `most` bytes and cuts no character in two.
size_t cut_at_character(const std::string& text, size_t most) {
  if (text.size() <= most) return text.size();
  const auto continues = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U; };
  size_t length = most;
  while (length > 0 && most - length < 3 && continues(length)) --length;
  return continues(length) ? most : length;  // more continuation bytes than a character has: no UTF-8
}
}  // namespace

at::Tensor record_lines(const at::Tensor& ids, const RawScores& s, const Verdicts& v, const RecordShape& shape) {
  const auto column = [](const at::Tensor& t) { return t.to(at::kDouble).unsqueeze(1); };
  const auto one = column(at::ones_like(v.weight));
  std::vector<at::Tensor> columns{one,
                                  column(ids),
                                  column(s.timestep),
                                  column(s.captioned),
                                  column(s.probed),
                                  column(v.flagged),
                                  column(v.weight),
                                  column(v.score),
                                  column(v.level),
                                  column(s.nonfinite),
                                  s.exempt.defined() ? column(s.exempt.logical_not()) : one,
                                  column(s.stratum.defined() ? s.stratum : at::zeros_like(ids)),
                                  column(v.alike),
                                  column(v.together),
                                  s.raw.to(at::kDouble),
                                  v.z.to(at::kDouble)};
  if (shape.likeness > 0)
    columns.push_back(s.likeness.defined() ? s.likeness.to(at::kDouble)
                                           : at::full({ids.size(0), shape.likeness}, kNaN, one.options()));
  return at::cat(columns, 1);
}

RecordBuilder::RecordBuilder(const RecordShape& shape, at::Device device) : shape_(shape) {
  blank_ = at::full({shape.length()}, kNaN, at::device(device).dtype(at::kDouble));
  blank_.slice(0, 0, RecordShape::kHeader + RecordShape::kMessage).zero_();
  auto lines = blank_.slice(0, RecordShape::kHeader + RecordShape::kMessage).view({-1, shape.width()});
  lines.slice(1, 0, RecordShape::first_channel).zero_();
  flat_ = blank_.clone();
  lines = flat_.slice(0, RecordShape::kHeader + RecordShape::kMessage).view({-1, shape.width()});
  training_ = lines.slice(0, 0, shape.training_lines()).view({shape.micro_batches, shape.rows, shape.width()});
  held_out_ = lines.slice(0, shape.training_lines(), shape.training_lines() + shape.held_out);
  looks_ = lines.slice(0, shape.training_lines() + shape.held_out);
}

void RecordBuilder::clear() {
  flat_.copy_(blank_);
  failed_ = false;
}

void RecordBuilder::put_training(int64_t micro, const at::Tensor& lines) {
  training_.select(0, micro).slice(0, 0, lines.size(0)).copy_(lines);
}

void RecordBuilder::put_held_out(int64_t from, const at::Tensor& lines) {
  held_out_.slice(0, from, from + lines.size(0)).copy_(lines);
}

void RecordBuilder::put_looks(const at::Tensor& lines, const at::Tensor& counted) {
  auto own = looks_.slice(0, 0, lines.size(0));
  own.copy_(lines);
  const auto kept = counted.to(at::kDouble);
  for (const auto field : {RecordShape::present, RecordShape::flagged, RecordShape::nonfinite, RecordShape::counted})
    own.select(1, field).mul_(kept);
}

void RecordBuilder::mark_nonfinite(int64_t micro, const at::Tensor& bad) {
  auto column = training_.select(0, micro).select(1, RecordShape::nonfinite).slice(0, 0, bad.size(0));
  column.copy_(at::maximum(column, bad.to(at::kDouble)));
}

void RecordBuilder::mark_gradient(const at::Tensor& bad) {
  flat_.select(0, RecordShape::extra).copy_(bad);
}

void RecordBuilder::set_step(int64_t step) {
  flat_.select(0, RecordShape::step).fill_(static_cast<double>(step));
}

void RecordBuilder::set_drift(const at::Tensor& drift) {
  flat_.select(0, RecordShape::drift).copy_(drift);
}

void RecordBuilder::fail(const std::string& message) {
  if (failed_) return;
  failed_ = true;
  const auto length = static_cast<int64_t>(cut_at_character(message, RecordShape::kMessage));
  at::Tensor head = at::tensor({1., static_cast<double>(length)}, at::kDouble);
  at::Tensor text = at::zeros({length}, at::kDouble);
  for (int64_t i = 0; i < length; ++i) text.mutable_data_ptr<double>()[i] = static_cast<unsigned char>(message[i]);
  flat_.slice(0, 0, head.size(0)).copy_(head);
  flat_.slice(0, RecordShape::kHeader, RecordShape::kHeader + length).copy_(text);
}

Gathered split(const at::Tensor& all, const RecordShape& shape) {
  const int64_t ranks = all.size(0), width = shape.width();
  const auto lines = all.slice(1, RecordShape::kHeader + RecordShape::kMessage).reshape({ranks, -1, width});
  const auto training =
      lines.slice(1, 0, shape.training_lines()).reshape({ranks, shape.micro_batches, shape.rows, width});
  return {all.select(1, RecordShape::failed),
          all.select(1, RecordShape::extra),
          all.select(1, RecordShape::step),
          all.select(1, RecordShape::drift),
          training.transpose(0, 1).reshape({-1, width}),
          lines.slice(1, shape.training_lines(), shape.training_lines() + shape.held_out).reshape({-1, width}),
          lines.slice(1, shape.training_lines() + shape.held_out).reshape({-1, width}),
          shape};
}

std::string first_error(const at::Tensor& all) {
  const auto values = all.accessor<double, 2>();
  for (int64_t rank = 0; rank < all.size(0); ++rank) {
    if (values[rank][RecordShape::failed] == 0) continue;
    std::string message = "rank " + std::to_string(rank) + ": ";
    for (int64_t i = 0; i < static_cast<int64_t>(values[rank][RecordShape::message_bytes]); ++i) {
      message.push_back(static_cast<char>(static_cast<int>(values[rank][RecordShape::kHeader + i])));
    }
    return message;
  }
  return "";
}

}  // namespace memsieve
