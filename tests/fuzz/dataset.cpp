// HDF5 data sets. An input is a plan by which HDF5 itself makes the file, so that what is odd about it lies where our
// code looks: links, types, shapes, layouts, filters, chunks, attributes, values; of the heap, where texts lie, bytes
// are changed. Without input it is a good data set.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <diffusion/io/hdf5_open.h>
#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>
#include <memsieve/error.h>
#include <support/files.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "fuzz_input.h"

using memsieve::DataError;
using memsieve::detail::Hdf5Handle;
using memsieve::diffusion::Dataset;
using memsieve::diffusion::hdf5_half_type;

namespace {

using Shape = std::vector<hsize_t>;

constexpr hsize_t kRows = 3;
constexpr uint64_t kMostWritten = 1 << 16;

Hdf5Handle copy_of(hid_t type) {
  return {H5Tcopy(type), H5Tclose};
}

Hdf5Handle text(size_t size) {
  Hdf5Handle type = copy_of(H5T_C_S1);
  H5Tset_size(type.get(), size);
  return type;
}

Hdf5Handle odd_type(unsigned kind) {
  const hsize_t three = 3;
  switch (kind) {
    case 1:
      return hdf5_half_type();
    case 2:
      return copy_of(H5T_IEEE_F64LE);
    case 3:
      return copy_of(H5T_STD_I64BE);
    case 4:
      return copy_of(H5T_STD_U8BE);
    case 5:
      return copy_of(H5T_IEEE_F32BE);
    case 6:
      return text(7);
    case 7:
      return text(H5T_VARIABLE);
    case 8:
      return {H5Tcreate(H5T_OPAQUE, 5), H5Tclose};
    case 9:
      return {H5Tarray_create2(H5T_IEEE_F32LE, 1, &three), H5Tclose};
    case 10: {
      Hdf5Handle type{H5Tcreate(H5T_COMPOUND, 8), H5Tclose};
      H5Tinsert(type.get(), "a", 0, H5T_STD_I32LE);
      return type;
    }
    case 11:
      return copy_of(H5T_STD_REF_OBJ);
    case 12:
      return copy_of(H5T_STD_U64LE);
    case 13:
      return copy_of(H5T_IEEE_F32LE);
    case 14: {  // an integer of five bits
      Hdf5Handle type = copy_of(H5T_STD_I64LE);
      H5Tset_precision(type.get(), 5);
      H5Tset_offset(type.get(), 3);
      return type;
    }
    case 15: {  // a number with a point somewhere else
      Hdf5Handle type = copy_of(H5T_IEEE_F64LE);
      H5Tset_ebias(type.get(), 3);
      return type;
    }
    default:
      return copy_of(H5T_NATIVE_INT8);
  }
}

uint64_t count_of(const Shape& shape, uint64_t most) {
  uint64_t count = 1;
  for (const hsize_t n : shape) {
    if (n == 0) return 0;
    if (count > most / n) return most + 1;
    count *= n;
  }
  return count;
}

bool has_filter(hid_t created, const std::vector<H5Z_filter_t>& wanted) {
  for (int i = 0; i < H5Pget_nfilters(created); ++i) {
    unsigned flags = 0, about = 0;
    size_t values = 0;
    const auto filter = H5Pget_filter2(created, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &about);
    if (std::find(wanted.begin(), wanted.end(), filter) != wanted.end()) return true;
  }
  return false;
}

class Plan {
 public:
  Plan(fuzz::Input& input, const std::string& path) : input_(input) {
    const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    if (odd(2) == 1) H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
    file_ = Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose);
    fuzz::require(static_cast<bool>(file_), "a file can be made");
  }

  void make() {
    attribute(file_.get(), "format", text(16), {}, "memsieve-dataset");
    const int64_t version = 1;
    attribute(file_.get(), "version", copy_of(H5T_NATIVE_INT64), {}, &version);
    const bool latents = odd(2) != 0, flips = odd(2) != 0, pooled = odd(2) != 0, bytes = odd(2) != 0;
    const Shape pictures = latents ? Shape{kRows, 4, 2, 2} : Shape{kRows, 3, 4, 4};
    put(latents ? "latents" : "images", copy_of(latents ? H5T_IEEE_F32LE : H5T_STD_U8LE), pictures,
        [&](hid_t id) { latents ? scale_of(id) : codec_of(id); });
    if (latents && odd(2) != 0) put("latent_std", copy_of(H5T_IEEE_F32LE), pictures);
    if (flips) put("latents_flipped", copy_of(H5T_IEEE_F32LE), pictures);
    if (flips) put("latent_std_flipped", hdf5_half_type(), pictures);
    put("text", copy_of(H5T_IEEE_F32LE), {kRows, 2, 5});
    put("null_text", copy_of(H5T_IEEE_F32LE), {2, 5});
    if (pooled) put("pooled", hdf5_half_type(), {kRows, 6});
    if (pooled) put("null_pooled", hdf5_half_type(), {6});
    if (pooled) put("time_ids", copy_of(H5T_IEEE_F32LE), {kRows, 6});
    if (bytes) put("caption_bytes", copy_of(H5T_STD_U8LE), {12});
    if (bytes) put("caption_offsets", copy_of(H5T_STD_I64LE), {kRows + 1});
    if (!bytes) put("caption", text(H5T_VARIABLE), {kRows});
    if (odd(4) != 1) put("group_id", copy_of(H5T_STD_I64LE), {kRows});
    if (odd(8) == 1) put("images", copy_of(H5T_STD_U8LE), {kRows, 3, 4, 4});
  }

 private:
  unsigned odd(unsigned kinds) { return fuzz::odd(input_, kinds); }

  hsize_t odd_size(hsize_t size) {
    static constexpr hsize_t kSizes[] = {
        0, 1, 2, 4, 7, 64, 65, 1 << 20, hsize_t{1} << 31, hsize_t{1} << 40, hsize_t{1} << 62};
    const unsigned kind = odd(static_cast<unsigned>(std::size(kSizes)));
    return kind == 0 ? size : kSizes[kind - 1];
  }

  Shape odd_shape(Shape shape) {
    if (const unsigned kind = odd(3); kind == 1)
      shape.push_back(2);
    else if (kind == 2 && !shape.empty())
      shape.pop_back();
    for (hsize_t& n : shape) n = odd_size(n);
    return shape;
  }

  /// So many bytes of values: small numbers in every type, unless the plan has others.
  std::vector<char> values(hid_t type, uint64_t count) {
    const size_t size = H5Tget_size(type);
    std::vector<char> out(count * size);
    if (H5Tget_class(type) == H5T_FLOAT && odd(4) == 0) {
      const std::vector<double> halves(count, 0.5);
      std::vector<char> wide(count * std::max(size, sizeof(double)));
      std::memcpy(wide.data(), halves.data(), count * sizeof(double));
      H5Tconvert(H5T_NATIVE_DOUBLE, type, count, wide.data(), nullptr, H5P_DEFAULT);
      std::copy_n(wide.begin(), out.size(), out.begin());
    }
    for (unsigned change = odd(8); change > 0 && !out.empty(); --change)
      out[input_.ConsumeIntegralInRange<size_t>(0, out.size() - 1)] =
          static_cast<char>(input_.ConsumeIntegral<uint8_t>());
    return out;
  }

  void write(hid_t dataset, hid_t type, uint64_t count) {
    if (H5Tis_variable_str(type) > 0) {
      std::string said = input_.ConsumeRandomLengthString(8);
      std::vector<const char*> texts(count, said.c_str());
      if (odd(2) == 1) std::fill(texts.begin(), texts.end(), nullptr);
      H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, texts.data());
      return;
    }
    const auto out = values(type, count);
    H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data());
  }

  /// Bytes put in a chunk's place as they are: deflated, of any length, or of any content.
  void write_chunk(hid_t dataset, const Shape& shape) {
    const size_t size = input_.ConsumeIntegralInRange<size_t>(0, 4096);
    std::vector<unsigned char> inner(size, 1), stored(compressBound(size));
    uLongf count = stored.size();
    compress(stored.data(), &count, inner.data(), inner.size());
    stored.resize(count);
    if (odd(2) == 1) stored = input_.ConsumeBytes<unsigned char>(64);
    if (odd(2) == 1) stored.resize(input_.ConsumeIntegralInRange<size_t>(0, 512));
    const Shape place(shape.size(), 0);
    H5Dwrite_chunk(dataset, H5P_DEFAULT, odd(8), place.data(), stored.size(), stored.data());
  }

  void add_filters(hid_t created) {
    for (unsigned count = odd(3); count > 0; --count) {
      switch (input_.ConsumeIntegralInRange(0, 5)) {
        case 0:
        case 1:
          H5Pset_deflate(created, 4);
          break;
        case 2:
          H5Pset_shuffle(created);
          break;
        case 3:
          H5Pset_fletcher32(created);
          break;
        case 4:
          H5Pset_scaleoffset(created, H5Z_SO_INT, 0);
          break;
        default:
          H5Pset_nbit(created);
      }
    }
  }

  Hdf5Handle layout(const Shape& shape, bool& chunked) {
    Hdf5Handle created(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    const unsigned kind = odd(6);
    chunked = kind >= 1 && kind <= 4 && !shape.empty();
    if (chunked) {
      Shape chunk;
      for (const hsize_t n : shape) chunk.push_back(std::clamp<hsize_t>(odd_size(n), 1, UINT32_MAX));
      H5Pset_chunk(created.get(), static_cast<int>(chunk.size()), chunk.data());
      add_filters(created.get());
      if (odd(2) == 1) H5Pset_chunk_opts(created.get(), H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS);
    } else if (kind == 5) {
      H5Pset_layout(created.get(), H5D_COMPACT);
    } else if (kind == 6) {
      H5Pset_external(created.get(), "elsewhere", 0, H5F_UNLIMITED);
    }
    return created;
  }

  void put(const char* name, Hdf5Handle type, Shape shape, const std::function<void(hid_t)>& attributes = {}) {
    switch (odd(7)) {
      case 1:
        return;
      case 2:
        H5Gclose(H5Gcreate2(file_.get(), name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
        return;
      case 3:
        H5Lcreate_soft(odd(2) == 0 ? "/text" : name, file_.get(), name, H5P_DEFAULT, H5P_DEFAULT);
        return;
      case 4:
        H5Lcreate_external("data.h5", "/text", file_.get(), name, H5P_DEFAULT, H5P_DEFAULT);
        return;
      case 5:
        H5Tcommit2(file_.get(), name, type.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        return;
      default:
        break;
    }
    if (const unsigned kind = odd(16); kind != 0) type = odd_type(kind);
    shape = odd_shape(shape);
    bool chunked = false;
    const Hdf5Handle created = layout(shape, chunked);
    const Hdf5Handle space(shape.empty() ? H5Screate(odd(2) == 0 ? H5S_SCALAR : H5S_NULL)
                                         : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr),
                           H5Sclose);
    const Hdf5Handle dataset(
        H5Dcreate2(file_.get(), name, type.get(), space.get(), H5P_DEFAULT, created.get(), H5P_DEFAULT), H5Dclose);
    if (!dataset) return;
    if (attributes) attributes(dataset.get());
    // HDF5 1.10 itself would crash: in these filters, and where a chunk is put in the place of none.
    if (chunked && has_filter(created.get(), {H5Z_FILTER_NBIT, H5Z_FILTER_SCALEOFFSET})) return;
    const uint64_t count = count_of(shape, kMostWritten);
    if (odd(4) != 1 && count > 0 && count * H5Tget_size(type.get()) <= kMostWritten)
      write(dataset.get(), type.get(), count);
    if (chunked && odd(2) == 1 && H5Dget_storage_size(dataset.get()) > 0) write_chunk(dataset.get(), shape);
  }

  void attribute(hid_t object, const char* name, Hdf5Handle type, Shape shape, const void* value) {
    const unsigned kind = odd(4);
    if (kind == 1) return;
    std::vector<char> bytes(static_cast<const char*>(value),
                            static_cast<const char*>(value) + H5Tget_size(type.get()) * count_of(shape, 64));
    if (kind == 2) type = odd_type(1 + input_.ConsumeIntegralInRange(0U, 15U));
    if (kind == 3) shape = {input_.ConsumeIntegralInRange<hsize_t>(0, 1000)};
    if (kind == 4 && !bytes.empty())
      bytes[input_.ConsumeIntegralInRange<size_t>(0, bytes.size() - 1)] =
          static_cast<char>(input_.ConsumeIntegral<uint8_t>());
    const Hdf5Handle space(shape.empty() ? H5Screate(kind == 3 ? H5S_NULL : H5S_SCALAR)
                                         : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr),
                           H5Sclose);
    const Hdf5Handle made(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    bytes.resize(
        std::max<size_t>(bytes.size(), H5Tget_size(type.get()) * std::max<uint64_t>(count_of(shape, 1000), 1)));
    if (H5Tis_variable_str(type.get()) > 0) {
      const char* one = "memsieve-dataset";
      if (shape.empty()) H5Awrite(made.get(), type.get(), &one);
      return;
    }
    H5Awrite(made.get(), type.get(), bytes.data());
  }

  void codec_of(hid_t images) {
    const double mean[] = {0.5, 0.5, 0.5}, std[] = {0.25, 0.25, 0.25};
    const int64_t factor = 2;
    attribute(images, "mean", copy_of(H5T_NATIVE_DOUBLE), {3}, mean);
    attribute(images, "std", copy_of(H5T_NATIVE_DOUBLE), {3}, std);
    attribute(images, "pixel_unshuffle", copy_of(H5T_NATIVE_INT64), {}, &factor);
  }
  void scale_of(hid_t latents) {
    const double factor = 0.2;
    if (odd(2) == 1) attribute(latents, "scaling_factor", copy_of(H5T_NATIVE_DOUBLE), {}, &factor);
    if (odd(2) == 1) attribute(latents, "shift_factor", copy_of(H5T_NATIVE_DOUBLE), {}, &factor);
  }

  fuzz::Input& input_;
  Hdf5Handle file_;
};

/// The first bytes of the heap, which is read without HDF5.
void change_heap(fuzz::Input& input, const std::string& path) {
  constexpr size_t kMost = 256;
  std::string bytes = memsieve::testing::read_file(path);
  const size_t heap = bytes.find("GCOL");
  if (heap == std::string::npos) return;
  for (int left = input.ConsumeIntegralInRange(0, 4); left > 0; --left)
    bytes[heap + input.ConsumeIntegralInRange<size_t>(0, std::min(bytes.size() - heap, kMost) - 1)] =
        static_cast<char>(input.ConsumeIntegral<uint8_t>());
  memsieve::testing::write_file(path, bytes);
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t n : shape) count *= n;
  return count;
}

void read(const std::string& path, bool cached, bool flips) {
  const Dataset set = Dataset::open(path, {.cache_bytes = cached ? 1 << 20 : 0, .flips = flips});
  fuzz::require(set.size() > 0 && set.latent_shape().size() == 3, "a data set has rows");
  if (product(set.latent_shape()) > int64_t{kMostWritten}) return;  // never written, so that any size may be claimed
  const std::vector<int64_t> ids{0, set.size() - 1};
  const auto rows = set.load(ids, flips && !set.codec() ? at::arange(2).to(at::kBool) : at::Tensor());
  fuzz::require(rows.latents.dim() == 4 && rows.latents.size(0) == 2 && rows.latents.isfinite().all().item<bool>(),
                "rows are numbers");
  fuzz::require(set.captions(ids).size() == 2, "every row has a caption");
  if (set.codec()) set.load_images({0});
  set.check_matches(set);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  memsieve::detail::silence_hdf5();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const memsieve::testing::TemporaryFolder folder;
  const std::string path = folder.file("data.h5");
  fuzz::Input input(data, size);
  const bool cached = input.ConsumeBool(), flips = input.ConsumeBool();
  Plan(input, path).make();
  change_heap(input, path);
  const bool sound = input.remaining_bytes() == 0 && size < 2;
  const bool refused = fuzz::refused<DataError>([&] { read(path, cached, flips && !sound); });
  fuzz::require(!(sound && refused), "a good data set is read");
  return 0;
}
