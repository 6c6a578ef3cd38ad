#include <ATen/ATen.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>
#include <diffusion/data/column.h>

#include <algorithm>

namespace memsieve::diffusion {

namespace {

constexpr const char* kFormat = "memsieve-dataset";
constexpr int64_t kVersion = 1;

}  // namespace

struct Dataset::Impl {
  Hdf5File file;
  Column pictures, latent_std, text, pooled, time_ids;
  /// of a set of latents that may be asked for both
  Column pictures_flipped, latent_std_flipped;
  Conditioning null;
  Hdf5Strings captions;
  std::vector<int64_t> group_ids, latent_shape;
  std::optional<Codec> codec;
  LatentScale scale;

  Impl(const std::string& path, const DatasetOptions& options) : file(path) {
    check_format();
    open_pictures();
    if (options.flips && !codec) open_flipped();
    open_text();
    open_pooled();
    open_rest();
    hold_if_small(options.cache_bytes);
    file.require_unchanged();
  }

  void hold_if_small(int64_t cache_bytes) {
    int64_t bytes = 0;
    for (const Column* column : columns()) {
      if (column->bytes() > cache_bytes - bytes) return;
      bytes += column->bytes();
    }
    for (Column* column : columns()) column->hold();
  }

  /// What `read` returns, from a file that is still what it was. Whatever else is wrong follows from a change of it.
  template <class Read>
  auto unchanged(const Read& read) const {
    try {
      auto found = read();
      file.require_unchanged();
      return found;
    } catch (const DataError&) {
      file.require_unchanged();
      throw;
    }
  }

  std::vector<Column*> columns() {
    return {&pictures, &latent_std, &pictures_flipped, &latent_std_flipped, &text, &pooled, &time_ids};
  }

  int64_t size() const { return pictures.array.shape()[0]; }

  void check_format() const {
    const std::string format = file.root_text("format");
    if (format != kFormat)
      throw DataError(file.path() + ": root attribute 'format' is " + detail::in_quotes(format) + ", expected '" +
                      kFormat + "'");
    const int64_t version = file.root_integer("version");
    if (version != kVersion)
      throw DataError(file.path() + ": layout version " + std::to_string(version) + ", this program reads version " +
                      std::to_string(kVersion));
  }

  void open_pictures() {
    const bool images = file.has("/images"), latents = file.has("/latents");
    if (images == latents)
      throw DataError(file.path() + ": holds " + (images ? "both" : "neither") +
                      " /images and /latents; exactly one of them is needed");
    if (images) {
      pictures.array = file.array("/images", 4, {at::kByte}, Written::all_or_nothing);
      codec = read_codec(pictures.array);
      const auto& s = pictures.array.shape();
      const int64_t r = codec->factor;
      latent_shape = {3 * r * r, s[2] / r, s[3] / r};
    } else {
      pictures.array = file.array("/latents", 4, {at::kHalf, at::kFloat}, Written::all_or_nothing);
      latent_shape.assign(pictures.array.shape().begin() + 1, pictures.array.shape().end());
      scale = read_latent_scale(pictures.array);
    }
    if (!file.has("/latent_std")) return;
    if (images) throw DataError(file.path() + ": /latent_std goes with /latents, but the file has /images");
    latent_std.array = file.array("/latent_std", 4, {at::kHalf, at::kFloat}, Written::all_or_nothing);
    latent_std.positive = true;
    check_shape(latent_std.array, pictures.array.shape(), "/latents");
  }

  void open_flipped() {
    const auto open = [&](const std::string& name, const Column& as, Column& into) {
      if (!as.there()) return;
      if (!file.has(name))
        throw DataError(file.path() + ": has no " + name +
                        ", which data.random_flip needs; prepare the set with --random-flip, or leave it off");
      into.array = file.array(name, 4, {at::kHalf, at::kFloat}, Written::all_or_nothing);
      into.positive = as.positive;
      check_shape(into.array, as.array.shape(), as.array.where().substr(file.path().size() + 2));
    };
    open("/latents_flipped", pictures, pictures_flipped);
    open("/latent_std_flipped", latent_std, latent_std_flipped);
  }

  void check_shape(const Hdf5Array& array, at::IntArrayRef want, const std::string& as) const {
    if (at::IntArrayRef(array.shape()) == want) return;
    throw DataError(array.where() + ": shape " + shape_text(array.shape()) + ", expected " + shape_text(want) +
                    " as in " + as);
  }

  // The empty caption's row of `column`.
  at::Tensor null_of(const std::string& name, const Column& column, const std::string& as) const {
    const Hdf5Array array =
        file.array(name, static_cast<int64_t>(column.array.shape().size()) - 1, {at::kHalf, at::kFloat});
    check_shape(array, at::IntArrayRef(column.array.shape()).slice(1), as);
    at::Tensor values = array.read().to(at::kFloat);
    check_finite(values.dim() > 1 ? values : values.unsqueeze(0), array.where(), {});
    return values;
  }

  void check_rows(const std::string& name, int64_t rows) const {
    if (rows != size())
      throw DataError(file.path() + ": " + name + ": " + std::to_string(rows) + " rows, but " +
                      pictures.array.where().substr(file.path().size() + 2) + " has " + std::to_string(size()));
  }

  void open_text() {
    text.array = file.array("/text", 3, {at::kHalf, at::kFloat});
    check_rows("/text", text.array.shape()[0]);
    null.text = null_of("/null_text", text, "/text");
  }

  void open_pooled() {
    const std::vector<std::string> names{"/pooled", "/null_pooled", "/time_ids"};
    const auto missing = std::find_if(names.begin(), names.end(), [&](const auto& name) { return !file.has(name); });
    const auto present = std::find_if(names.begin(), names.end(), [&](const auto& name) { return file.has(name); });
    if (present == names.end()) return;
    if (missing != names.end())
      throw DataError(file.path() + ": has " + *present + " but no " + *missing +
                      "; SDXL needs /pooled, /null_pooled and /time_ids, other models none of them");
    pooled.array = file.array("/pooled", 2, {at::kHalf, at::kFloat});
    check_rows("/pooled", pooled.array.shape()[0]);
    null.pooled = null_of("/null_pooled", pooled, "/pooled");
    time_ids.array = file.array("/time_ids", 2, {at::kFloat});
    check_shape(time_ids.array, {size(), 6}, "docs/data_format.md");
  }

  void open_rest() {
    captions = file.strings("/caption");
    check_rows("/caption", captions.size());
    if (!file.has("/group_id")) return;
    const Hdf5Array array = file.array("/group_id", 1, {at::kLong});
    check_rows("/group_id", array.shape()[0]);
    const at::Tensor groups = array.read();
    group_ids.assign(groups.data_ptr<int64_t>(), groups.data_ptr<int64_t>() + groups.size(0));
  }

  void check_ids(const std::vector<int64_t>& ids) const {
    for (const int64_t id : ids)
      if (id < 0 || id >= size())
        throw DataError(file.path() + ": sample id " + std::to_string(id) + " is out of range; the data set has " +
                        std::to_string(size()) + " rows");
  }

  Rows load(const std::vector<int64_t>& ids, const at::Tensor& flipped) const {
    Rows rows;
    rows.ids = at::tensor(ids, at::kLong);
    rows.condition = {text.real_rows(ids), pooled.real_rows(ids), time_ids.real_rows(ids)};
    if (codec) {
      at::Tensor images = pictures.rows(ids);
      if (flipped.defined()) images = at::where(flipped.view({-1, 1, 1, 1}), images.flip({3}), images);
      rows.latents = codec->encode(images);
      return rows;
    }
    rows.latents = pictures.real_rows(ids, pictures_flipped, flipped);
    if (scale.shift_factor != 0) rows.latents = rows.latents - scale.shift_factor;
    if (scale.scaling_factor != 1) rows.latents = rows.latents * scale.scaling_factor;
    rows.latent_std = latent_std.real_rows(ids, latent_std_flipped, flipped);
    if (rows.latent_std.defined()) rows.latent_std = rows.latent_std * scale.scaling_factor;
    if (scale == LatentScale()) return rows;
    const std::string scaled = pictures.array.where() + ": with 'scaling_factor' and 'shift_factor'";
    check_finite(rows.latents, scaled, ids);
    if (rows.latent_std.defined()) check_finite(rows.latent_std, scaled, ids);
    return rows;
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
  return impl_->unchanged([&] { return impl_->captions.read_rows(ids); });
}
const std::vector<int64_t>& Dataset::group_ids() const {
  return impl_->group_ids;
}
const std::optional<Codec>& Dataset::codec() const {
  return impl_->codec;
}
const LatentScale& Dataset::latent_scale() const {
  return impl_->scale;
}
bool Dataset::has_latent_std() const {
  return impl_->latent_std.there();
}
int64_t Dataset::pooled_dim() const {
  return impl_->pooled.there() ? impl_->pooled.array.shape()[1] : 0;
}
const std::string& Dataset::path() const {
  return impl_->file.path();
}
bool Dataset::cached() const {
  return impl_->text.cache.defined();
}

Rows Dataset::load(const std::vector<int64_t>& ids, const at::Tensor& flipped) const {
  impl_->check_ids(ids);
  return impl_->unchanged([&] { return impl_->load(ids, flipped); });
}

at::Tensor Dataset::load_images(const std::vector<int64_t>& ids) const {
  if (!impl_->codec) throw DataError(path() + ": holds latents, not pictures; they cannot be shown");
  impl_->check_ids(ids);
  return impl_->unchanged([&] { return impl_->pictures.rows(ids); });
}

void Dataset::require_unchanged() const {
  impl_->file.require_unchanged();
}

void Dataset::check_matches(const Dataset& other) const {
  const auto differ = [&](const std::string& what, const std::string& mine, const std::string& theirs) {
    throw DataError(other.path() + ": " + what + " " + theirs + ", but " + path() + " has " + mine);
  };
  if (latent_shape() != other.latent_shape())
    differ("latent shape", shape_text(latent_shape()), shape_text(other.latent_shape()));
  const std::vector<int64_t> mine{text_length(), text_dim()}, theirs{other.text_length(), other.text_dim()};
  if (mine != theirs) differ("text shape", shape_text(mine), shape_text(theirs));
  const auto pooled = [](const Dataset& d) {
    return d.pooled_dim() > 0 ? std::to_string(d.pooled_dim()) + " pooled features" : "no /pooled";
  };
  if (pooled_dim() != other.pooled_dim()) differ("has", pooled(*this), pooled(other));
  if (codec().has_value() != other.codec().has_value())
    differ("holds", codec() ? "pictures" : "latents", other.codec() ? "pictures" : "latents");
  if (codec() && (codec()->factor != other.codec()->factor || codec()->mean != other.codec()->mean ||
                  codec()->std != other.codec()->std))
    throw DataError(other.path() + ": 'mean', 'std' or 'pixel_unshuffle' of /images differ from those of " + path() +
                    "; make both with the same");
  const auto spread = [](const Dataset& d) { return d.has_latent_std() ? "/latent_std" : "no /latent_std"; };
  if (has_latent_std() != other.has_latent_std()) differ("has", spread(*this), spread(other));
  if (!(latent_scale() == other.latent_scale()))
    throw DataError(other.path() + ": 'scaling_factor' or 'shift_factor' of /latents differ from those of " + path() +
                    "; make both with the same VAE");
}

at::Tensor sample_latents(const Rows& rows, const at::Tensor& noise) {
  if (!rows.latent_std.defined()) return rows.latents;
  return at::addcmul(rows.latents, rows.latent_std, noise);
}

}  // namespace memsieve::diffusion
