#include "judge/discounted.h"

#include <ATen/ATen.h>

#include <cmath>

#include "judge/window.h"
#include "nan.h"

namespace memsieve {

namespace {
// beyond it a visit more changes nothing that float32 holds; int16 ends at 32767
constexpr int64_t kMostVisits = 30000;
// rows whose sums are made at a time: bounds the memory of the comparison of all pairs
constexpr int64_t kSamplesAtOnce = 512;

/// [R, C]: for each row the discounted sum over all rows of its key, in their order. A product over all pairs: every
/// rank adds in the same order, which index_add on a GPU does not; in float64, so that rows of other keys between them,
/// of which there may be more or fewer, do not show in the last bit.
at::Tensor sums_within_key(const at::Tensor& keys, const Ranks& ranks, const at::Tensor& z, double discount) {
  const auto later = (ranks.count - 1 - ranks.rank).to(at::kDouble);
  const auto part = z * at::pow(discount, later).unsqueeze(1);
  std::vector<at::Tensor> sums;
  for (int64_t from = 0; from < keys.size(0); from += kSamplesAtOnce) {
    const auto mine = keys.slice(0, from, from + kSamplesAtOnce);
    sums.push_back(at::mm((mine.unsqueeze(1) == keys.unsqueeze(0)).to(at::kDouble), part));
  }
  return at::cat(sums).to(at::kFloat);
}
}  // namespace

DiscountedSums::DiscountedSums(const Options& options, int64_t slots, int64_t channels, at::Device device)
    : options_(options),
      slots_(slots),
      sums_(at::zeros({slots + 1, channels}, at::device(device).dtype(at::kFloat))),
      visits_(at::zeros({slots + 1, channels}, at::device(device).dtype(at::kShort))) {}

DiscountedSums::Past DiscountedSums::recall(const at::Tensor& slot) const {
  return {sums_.index_select(0, slot), visits_.index_select(0, slot)};
}

DiscountedSums::Past DiscountedSums::since(int64_t from) const {
  return {sums_.slice(0, from, slots_), visits_.slice(0, from, slots_)};
}

DiscountedSums::Past DiscountedSums::with_visit(const Past& past, const at::Tensor& z) const {
  const auto measured = at::isnan(z).logical_not();
  const auto seen = past.visits + measured.to(at::kShort);
  return {at::where(measured, kept(past.sum * options_.discount + z, seen), past.sum), seen.clamp_max(kMostVisits)};
}

at::Tensor DiscountedSums::kept(const at::Tensor& sum, const at::Tensor& seen) const {
  // Where nothing is forgotten, a count that stands still must not let the mean grow.
  return options_.discount < 1 ? sum : sum * (kMostVisits / seen.to(at::kFloat)).clamp_max(1);
}

at::Tensor DiscountedSums::total_weight(const at::Tensor& visits, double discount) const {
  const auto n = visits.to(at::kFloat);
  return discount == 1 ? n : (1 - at::pow(discount, n)) / (1 - discount);
}

at::Tensor DiscountedSums::standardised(const Past& past, const at::Tensor& drift, double spread) const {
  const auto w = total_weight(past.visits, options_.discount);
  const auto v = total_weight(past.visits, options_.discount * options_.discount);
  const auto t = (past.sum - drift * w) / at::sqrt(v + spread * w.square()).clamp_min(1e-6);
  return t.masked_fill(past.visits == 0, kNaN);
}

at::Tensor DiscountedSums::mean(const Past& past) const {
  return (past.sum / total_weight(past.visits, options_.discount)).masked_fill(past.visits == 0, kNaN);
}

void DiscountedSums::fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid) {
  for (int64_t c = 0; c < z.size(1); ++c) {
    const auto value = z.slice(1, c, c + 1);
    const auto known = valid & at::isnan(value).logical_not().squeeze(1);
    const auto key = at::where(known, slot, at::full_like(slot, slots_));
    const auto ranks = rank_within_key(key);
    const auto added = sums_within_key(key, ranks, at::nan_to_num(value, 0.0), options_.discount).squeeze(1);
    const auto sums = sums_.select(1, c), visits = visits_.select(1, c);
    const auto count = ranks.count.to(at::kFloat);
    const auto seen = visits.index_select(0, key).to(at::kLong) + ranks.count;
    const auto sum = kept(sums.index_select(0, key) * at::pow(options_.discount, count) + added, seen);
    // Rows of one key write the same value, the last one of each alone: no place is written twice.
    const auto last = known & (ranks.rank == ranks.count - 1);
    const auto place = at::where(last, slot, at::full_like(slot, slots_));
    sums.index_put_({place}, sum);
    visits.index_put_({place}, seen.clamp_max(kMostVisits).to(at::kShort));
  }
}

}  // namespace memsieve
