#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <trainer/data/dataset.h>
#include <trainer/data/hdf5_file.h>

#include <cmath>

namespace memsieve::trainer {

namespace {

constexpr const char* kFormat = "memsieve-dataset";
constexpr int64_t kVersion = 1;

// Throws for the first row of `values` [B, ...] that holds a NaN or Inf. `ids` names rows, empty = 0, 1, 2
// ...
void check_finite(const at::Tensor& values, const std::string& where, const std::vector<int64_t>& ids) {
  if (!values.is_floating_point()) return;
  const at::Tensor good = values.isfinite().flatten(1).all(1);
  if (good.all().item<bool>()) return;
  const int64_t row = good.logical_not().nonzero()[0].item<int64_t>();
  throw DataError(where + ": row " + std::to_string(ids.empty() ? row : ids[row]) +
                  " holds a NaN or Inf; repair or leave out that row");
}

// A dataset that is either held in memory or read row by row.
struct Column {
  Hdf5Array array;
  at::Tensor cache;

  void hold() {
    cache = array.read();
    check_finite(cache, array.where(), {});
  }
  at::Tensor rows(const std::vector<int64_t>& ids) const {
    if (cache.defined()) return cache.index_select(0, at::tensor(ids, at::kLong));
    at::Tensor values = array.read_rows(ids);
    check_finite(values, array.where(), ids);
    return values;
  }
};

Codec read_codec(const Hdf5Array& images) {
  Codec codec;
  const auto mean = images.attribute("mean", 3), std = images.attribute("std", 3);
  for (int c = 0; c < 3; ++c) {
    codec.mean[c] = mean[c];
    codec.std[c] = std[c];
    if (!std::isfinite(mean[c]) || !std::isfinite(std[c]) || std[c] <= 0)
      throw DataError(images.where() + ": attributes 'mean' and 'std' must be finite, and 'std' above 0");
  }
  const double factor = images.attribute("pixel_unshuffle", 1)[0];
  if (!(factor >= 1 && factor <= 64) || factor != std::floor(factor))
    throw DataError(images.where() + ": attribute 'pixel_unshuffle' must be an integer from 1 to 64");
  codec.factor = static_cast<int64_t>(factor);
  const auto& shape = images.shape();
  if (shape[1] != 3)
    throw DataError(images.where() + ": has " + std::to_string(shape[1]) + " channels, expected 3");
  if (shape[2] % codec.factor || shape[3] % codec.factor)
    throw DataError(images.where() + ": " + std::to_string(shape[2]) + " x " + std::to_string(shape[3]) +
                    " pixels cannot be divided by pixel_unshuffle " + std::to_string(codec.factor));
  return codec;
}

std::string text_of(at::IntArrayRef shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : " x ") + std::to_string(n);
  return text;
}

}  // namespace

struct Dataset::Impl {
  Hdf5File file;
  Column pictures, text;
  Conditioning null;
  Hdf5Strings captions;
  std::vector<int64_t> group_ids, latent_shape;
  std::optional<Codec> codec;

  Impl(const std::string& path, const DatasetOptions& options) : file(path) {
    check_format();
    open_pictures();
    open_text();
    const int64_t bytes = pictures.array.bytes() + text.array.bytes();
    if (bytes <= options.cache_bytes) {
      pictures.hold();
      text.hold();
    }
  }

  int64_t size() const { return pictures.array.shape()[0]; }

  void check_format() const {
    const std::string format = file.root_text("format");
    if (format != kFormat)
      throw DataError(file.path() + ": root attribute 'format' is '" + format + "', expected '" + kFormat +
                      "'");
    const int64_t version = file.root_integer("version");
    if (version != kVersion)
      throw DataError(file.path() + ": layout version " + std::to_string(version) +
                      ", this program reads version " + std::to_string(kVersion));
  }

  void open_pictures() {
    const bool images = file.has("/images"), latents = file.has("/latents");
    if (images == latents)
      throw DataError(file.path() + ": holds " + (images ? "both" : "neither") +
                      " /images and /latents; exactly one of them is needed");
    if (images) {
      pictures.array = file.array("/images", 4, {at::kByte});
      codec = read_codec(pictures.array);
      const auto& s = pictures.array.shape();
      const int64_t r = codec->factor;
      latent_shape = {3 * r * r, s[2] / r, s[3] / r};
    } else {
      pictures.array = file.array("/latents", 4, {at::kHalf, at::kFloat});
      latent_shape.assign(pictures.array.shape().begin() + 1, pictures.array.shape().end());
    }
  }

  void check_rows(const std::string& name, int64_t rows) const {
    if (rows != size())
      throw DataError(file.path() + ": " + name + ": " + std::to_string(rows) + " rows, but " +
                      pictures.array.where().substr(file.path().size() + 2) + " has " +
                      std::to_string(size()));
  }

  void open_text() {
    text.array = file.array("/text", 3, {at::kHalf, at::kFloat});
    check_rows("/text", text.array.shape()[0]);
    const Hdf5Array empty = file.array("/null_text", 2, {at::kHalf, at::kFloat});
    const at::IntArrayRef want = at::IntArrayRef(text.array.shape()).slice(1);
    if (at::IntArrayRef(empty.shape()) != want)
      throw DataError(empty.where() + ": shape " + text_of(empty.shape()) + ", expected " + text_of(want) +
                      " as in /text");
    null.text = empty.read().to(at::kFloat);
    check_finite(null.text, empty.where(), {});
    captions = file.strings("/caption");
    check_rows("/caption", captions.size());
    if (!file.has("/group_id")) return;
    const at::Tensor groups = file.array("/group_id", 1, {at::kLong}).read();
    check_rows("/group_id", groups.size(0));
    group_ids.assign(groups.data_ptr<int64_t>(), groups.data_ptr<int64_t>() + groups.size(0));
  }

  void check_ids(const std::vector<int64_t>& ids) const {
    for (const int64_t id : ids)
      if (id < 0 || id >= size())
        throw DataError(file.path() + ": sample id " + std::to_string(id) +
                        " is out of range; the data set has " + std::to_string(size()) + " rows");
  }
};

Dataset::Dataset(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

Dataset Dataset::open(const std::string& path, const DatasetOptions& options) {
  return Dataset(std::make_shared<const Impl>(path, options));
}

int64_t Dataset::size() const {
  return impl_->size();
}
const std::vector<int64_t>& Dataset::latent_shape() const {
  return impl_->latent_shape;
}
int64_t Dataset::text_length() const {
  return impl_->text.array.shape()[1];
}
int64_t Dataset::text_dim() const {
  return impl_->text.array.shape()[2];
}
const Conditioning& Dataset::null() const {
  return impl_->null;
}
std::vector<std::string> Dataset::captions(const std::vector<int64_t>& ids) const {
  impl_->check_ids(ids);
  return impl_->captions.read_rows(ids);
}
const std::vector<int64_t>& Dataset::group_ids() const {
  return impl_->group_ids;
}
const std::optional<Codec>& Dataset::codec() const {
  return impl_->codec;
}
const std::string& Dataset::path() const {
  return impl_->file.path();
}
bool Dataset::cached() const {
  return impl_->text.cache.defined();
}

Rows Dataset::load(const std::vector<int64_t>& ids) const {
  impl_->check_ids(ids);
  const at::Tensor pictures = impl_->pictures.rows(ids);
  return {impl_->codec ? impl_->codec->encode(pictures) : pictures.to(at::kFloat),
          impl_->text.rows(ids).to(at::kFloat), at::tensor(ids, at::kLong)};
}

at::Tensor Dataset::load_images(const std::vector<int64_t>& ids) const {
  if (!impl_->codec) throw DataError(path() + ": holds latents, not pictures; they cannot be shown");
  impl_->check_ids(ids);
  return impl_->pictures.rows(ids);
}

void Dataset::check_matches(const Dataset& other) const {
  const auto differ = [&](const std::string& what, const std::string& mine, const std::string& theirs) {
    throw DataError(other.path() + ": " + what + " " + theirs + ", but " + path() + " has " + mine);
  };
  if (latent_shape() != other.latent_shape())
    differ("latent shape", text_of(latent_shape()), text_of(other.latent_shape()));
  const std::vector<int64_t> mine{text_length(), text_dim()}, theirs{other.text_length(), other.text_dim()};
  if (mine != theirs) differ("text shape", text_of(mine), text_of(theirs));
  if (codec().has_value() != other.codec().has_value())
    differ("holds", codec() ? "pictures" : "latents", other.codec() ? "pictures" : "latents");
  if (codec() && (codec()->factor != other.codec()->factor || codec()->mean != other.codec()->mean ||
                  codec()->std != other.codec()->std))
    throw DataError(other.path() + ": 'mean', 'std' or 'pixel_unshuffle' of /images differ from those of " +
                    path() + "; make both with the same");
}

}  // namespace memsieve::trainer
