#include <ATen/ATen.h>
#include <diffusion/models/common/conditioning.h>

namespace memsieve::diffusion {

namespace {

/// Applies f to the fields that are there.
template <class F>
Conditioning each(const Conditioning& c, F f) {
  const auto on = [&](const at::Tensor& t) { return t.defined() ? f(t) : t; };
  return {on(c.text), on(c.pooled), on(c.time_ids)};
}

at::Tensor blank(const at::Tensor& without, const at::Tensor& null, const at::Tensor& rows) {
  if (!rows.defined()) return rows;
  std::vector<int64_t> shape(static_cast<size_t>(rows.dim()), 1);
  shape[0] = -1;
  return at::where(without.view(shape), null.to(rows.scalar_type()).unsqueeze(0), rows);
}

at::Tensor repeat(const at::Tensor& null, const at::Tensor& rows) {
  return rows.defined() ? null.to(rows.scalar_type()).unsqueeze(0).expand_as(rows) : rows;
}

}  // namespace

Conditioning::Conditioning(at::Tensor text_, at::Tensor pooled_, at::Tensor time_ids_)
    : text(std::move(text_)), pooled(std::move(pooled_)), time_ids(std::move(time_ids_)) {}

Conditioning Conditioning::select(const at::Tensor& which) const {
  return each(*this, [&](const at::Tensor& t) { return t.index_select(0, which); });
}

Conditioning Conditioning::narrow(int64_t begin, int64_t rows) const {
  return each(*this, [&](const at::Tensor& t) { return t.narrow(0, begin, rows); });
}

Conditioning Conditioning::to(c10::Device device) const {
  return each(*this, [&](const at::Tensor& t) {
    if (device.is_cpu() || t.device() == device) return t.to(device);
    return (t.is_pinned() ? t : t.pin_memory()).to(device, /*non_blocking=*/true);
  });
}

Conditioning Conditioning::uncaptioned(const Conditioning& null) const {
  return {repeat(null.text, text), repeat(null.pooled, pooled), time_ids};
}

Conditioning Conditioning::uncaptioned_where(const at::Tensor& without, const Conditioning& null) const {
  return {blank(without, null.text, text), blank(without, null.pooled, pooled), time_ids};
}

Conditioning cat(const Conditioning& a, const Conditioning& b) {
  const auto both = [](const at::Tensor& x, const at::Tensor& y) { return x.defined() ? at::cat({x, y}) : x; };
  return {both(a.text, b.text), both(a.pooled, b.pooled), both(a.time_ids, b.time_ids)};
}

}  // namespace memsieve::diffusion
