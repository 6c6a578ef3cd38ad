#include <ATen/ATen.h>
#include <audit/data/prompts.h>
#include <diffusion/io/hdf5_file.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>

#include <algorithm>
#include <numeric>

namespace memsieve::audit {

namespace {

constexpr const char* kRemedy = "; make it with `memsieve prompts`";
/// Rows whose states are hashed at once.
constexpr int64_t kRowsAtOnce = 256;
/// Rows, evenly over all, in which pictures are looked for.
constexpr int64_t kRowsLookedAt = 16;

std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> ids(static_cast<size_t>(end - begin));
  std::iota(ids.begin(), ids.end(), begin);
  return ids;
}

uint64_t hash_of(const at::Tensor& values, uint64_t hash) {
  if (!values.defined()) return hash;
  const at::Tensor bytes = values.contiguous();
  return detail::fnv1a(bytes.const_data_ptr(), bytes.nbytes(), hash);
}

}  // namespace

Prompts Prompts::open(const std::string& path) {
  Prompts prompts(Dataset::open(path));
  const Hdf5File file(path);
  if (file.has("/encoder_bytes")) {
    const Hdf5Strings encoder = file.strings("/encoder");
    if (encoder.size() != 1) throw DataError(path + ": /encoder must be one text" + kRemedy);
    prompts.encoder_ = encoder.read_rows({0}).front();
  }
  prompts.read_tokens(file);
  prompts.read_variants(file);
  prompts.read_clip_text(file);
  prompts.look_for_pictures();
  file.require_unchanged();
  return prompts;
}

void Prompts::read_tokens(const Hdf5File& file) {
  if (!file.has("/end_token")) return;
  const int64_t rows = data_.size(), length = data_.text_length();
  const Hdf5Strings words = file.strings("/token");
  const at::Tensor ends = file.array("/end_token", 1, {at::kLong}).read();
  if (words.size() != rows * length || ends.size(0) != rows)
    throw DataError(file.path() + ": /token and /end_token do not fit the " + std::to_string(rows) + " prompts of " +
                    std::to_string(length) + " tokens" + kRemedy);
  words_ = words.read_rows(range(0, rows * length));
  end_token_.assign(ends.const_data_ptr<int64_t>(), ends.const_data_ptr<int64_t>() + rows);
  for (const int64_t end : end_token_)
    if (end < 0 || end > length)
      throw DataError(file.path() + ": /end_token: " + std::to_string(end) + " is no place among " +
                      std::to_string(length) + " tokens" + kRemedy);
}

void Prompts::read_clip_text(const Hdf5File& file) {
  if (!file.has("/clip_text")) return;
  clip_text_ = file.array("/clip_text", 2, {at::kHalf, at::kFloat}).read().to(at::kFloat);
  if (clip_text_.size(0) != data_.size() || !clip_text_.isfinite().all().item<bool>())
    throw DataError(file.path() + ": /clip_text must have a row of finite numbers for each prompt" + kRemedy +
                    " --clip FOLDER");
}

void Prompts::look_for_pictures() {
  // One picture may be black, whose values are those of room never written to.
  const int64_t count = std::min(size_, kRowsLookedAt);
  for (int64_t i = 0; i < count && !has_pictures_; ++i) {
    const int64_t row = i * size_ / count;
    const at::Tensor values = data_.codec() ? data_.load_images({row}) : data_.load({row}).latents;
    has_pictures_ = values.ne(0).any().item<bool>();
  }
}

void Prompts::read_variants(const Hdf5File& file) {
  size_ = data_.size();
  if (!file.has("/variant_of")) return;
  const at::Tensor of = file.array("/variant_of", 1, {at::kLong}).read();
  const Hdf5Strings kinds = file.strings("/variant");
  if (of.size(0) != data_.size() || kinds.size() != data_.size())
    throw DataError(file.path() + ": /variant_of and /variant do not have a row for each prompt" + kRemedy);
  variant_of_.assign(of.const_data_ptr<int64_t>(), of.const_data_ptr<int64_t>() + of.size(0));
  variant_kinds_ = kinds.read_rows(range(0, data_.size()));
  size_ = std::find_if(variant_of_.begin(), variant_of_.end(), [](int64_t v) { return v >= 0; }) - variant_of_.begin();
  for (size_t row = 0; row < variant_of_.size(); ++row) {
    const bool first = static_cast<int64_t>(row) < size_;
    if (first ? variant_of_[row] == -1 : variant_of_[row] >= 0 && variant_of_[row] < size_) continue;
    throw DataError(file.path() + ": /variant_of: row " + std::to_string(row) + " is of " +
                    std::to_string(variant_of_[row]) + "; variants come behind all prompts and name one" + kRemedy);
  }
  if (size_ == 0) throw DataError(file.path() + ": holds variants alone, no prompt" + kRemedy);
}

std::vector<Variant> Prompts::variants(int64_t row, const std::string& kind) const {
  std::vector<Variant> found;
  for (size_t i = static_cast<size_t>(size_); i < variant_of_.size(); ++i)
    if (variant_of_[i] == row && (kind.empty() || variant_kinds_[i] == kind))
      found.push_back({static_cast<int64_t>(i), variant_kinds_[i]});
  return found;
}

void Prompts::require_tokens(const std::string& command) const {
  if (has_tokens()) return;
  throw DataError(data_.path() + ": has no /token and /end_token, which " + command + " needs to name words" + kRemedy);
}

std::vector<std::string> Prompts::tokens(int64_t row) const {
  const auto begin = words_.begin() + row * data_.text_length();
  return {begin, begin + data_.text_length()};
}

std::string Prompts::identity() const {
  uint64_t hash = hash_of(data_.null().pooled, hash_of(data_.null().text, detail::kFnv1aStart));
  for (int64_t begin = 0; begin < data_.size(); begin += kRowsAtOnce) {
    const auto ids = range(begin, std::min(data_.size(), begin + kRowsAtOnce));
    for (const auto& caption : data_.captions(ids)) hash = detail::fnv1a(caption.c_str(), caption.size() + 1, hash);
    const Conditioning condition = data_.load(ids).condition;
    for (const auto& part : {condition.text, condition.pooled, condition.time_ids}) hash = hash_of(part, hash);
  }
  for (const auto* places : {&end_token_, &variant_of_})
    hash = detail::fnv1a(places->data(), places->size() * sizeof(int64_t), hash);
  for (const std::string& kind : variant_kinds_) hash = detail::fnv1a(kind.c_str(), kind.size() + 1, hash);
  return std::to_string(size()) + " prompts, " + detail::in_hex(hash);
}

void Prompts::check_comparable(const Prompts& other) const {
  data_.check_matches(other.data_);
  const auto named = [](const Prompts& p) { return p.encoder_.empty() ? "an unnamed one" : p.encoder_; };
  const std::string why = "; what is measured depends on the encoder, so make both with the same";
  if (encoder_ != other.encoder_)
    throw DataError(other.data_.path() + ": comes from another text encoder (" + named(other) + ") than " +
                    data_.path() + " (" + named(*this) + ")" + why);
  if (!at::equal(data_.null().text, other.data_.null().text))
    throw DataError(other.data_.path() + ": has other states of the empty caption than " + data_.path() +
                    ", so they come from another text encoder" + why);
}

}  // namespace memsieve::audit
