#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/io/hdf5_file.h>

#include <algorithm>
#include <filesystem>

namespace memsieve::diffusion {

namespace {

std::string join(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Hdf5Handle half_type() {
  Hdf5Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);  // IEEE 754 binary16: sign, exponent, mantissa
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

// The memory type that reads `stored` without conversion (but for byte order), and torch's name for it.
bool understand(hid_t stored, Hdf5Handle& memory, at::ScalarType& dtype) {
  const auto same = [&](hid_t type) { return H5Tequal(stored, type) > 0; };
  const auto take = [&](hid_t type, at::ScalarType name) {
    memory = Hdf5Handle(H5Tcopy(type), H5Tclose);
    dtype = name;
    return true;
  };
  if (same(H5T_STD_U8LE) || same(H5T_STD_U8BE)) return take(H5T_NATIVE_UINT8, at::kByte);
  if (same(H5T_STD_I64LE) || same(H5T_STD_I64BE)) return take(H5T_NATIVE_INT64, at::kLong);
  if (same(H5T_IEEE_F32LE) || same(H5T_IEEE_F32BE)) return take(H5T_NATIVE_FLOAT, at::kFloat);
  const Hdf5Handle half = half_type();
  return same(half.get()) && take(half.get(), at::kHalf);
}

std::string type_name(hid_t type) {
  const auto bits = std::to_string(8 * H5Tget_size(type));
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return (H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int") + bits;
    case H5T_FLOAT:
      return "float" + bits;
    case H5T_STRING:
      return "string";
    default:
      return "something else";
  }
}

std::string names(const std::vector<at::ScalarType>& dtypes) {
  std::string text;
  for (const auto dtype : dtypes) {
    if (!text.empty()) text += " or ";
    text += dtype == at::kByte ? "uint8" : dtype == at::kLong ? "int64" : dtype == at::kHalf ? "float16" : "float32";
  }
  return text;
}

std::vector<int64_t> shape_of(hid_t dataset) {
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  const int rank = std::max(H5Sget_simple_extent_ndims(space.get()), 0);
  std::vector<hsize_t> dims(rank);
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

}  // namespace

namespace {

// HDF5 keeps the chunks last read, by default 1 MiB of them, and none that is larger: rows of one large chunk would
// each inflate it anew. So room for one chunk, unless it is so large that whoever wrote it never meant to read rows.
constexpr size_t kSmallChunk = size_t{1} << 20, kHugeChunk = size_t{1} << 26;

Hdf5Handle open_with_chunk_cache(hid_t file, const std::string& name) {
  Hdf5Handle plain(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!plain) return plain;
  const Hdf5Handle created(H5Dget_create_plist(plain.get()), H5Pclose);
  if (H5Pget_layout(created.get()) != H5D_CHUNKED) return plain;
  std::vector<hsize_t> chunk(H5S_MAX_RANK);
  const int rank = H5Pget_chunk(created.get(), H5S_MAX_RANK, chunk.data());
  const Hdf5Handle type(H5Dget_type(plain.get()), H5Tclose);
  size_t bytes = H5Tget_size(type.get());
  for (int i = 0; i < rank; ++i) bytes *= chunk[static_cast<size_t>(i)];
  if (bytes <= kSmallChunk || bytes > kHugeChunk) return plain;
  const Hdf5Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_chunk_cache(access.get(), H5D_CHUNK_CACHE_NSLOTS_DEFAULT, bytes, H5D_CHUNK_CACHE_W0_DEFAULT);
  plain = {};  // an open dataset keeps the cache that it was opened with first
  return {H5Dopen2(file, name.c_str(), access.get()), H5Dclose};
}

}  // namespace

Hdf5File::Hdf5File(const std::string& path) : path_(path) {
  silence_hdf5();
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw DataError(path + ": no such file");
  if (!std::filesystem::is_regular_file(path, error)) throw DataError(path + ": is not a file");
  if (H5Fis_hdf5(path.c_str()) <= 0) throw DataError(path + ": is not an HDF5 file (or cannot be read)");
  id_ = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (!id_) throw DataError(path + ": HDF5 cannot open it; it is truncated, damaged or being written");
}

bool Hdf5File::has(const std::string& name) const {
  silence_hdf5();
  return H5Lexists(id_.get(), name.c_str(), H5P_DEFAULT) > 0;
}

Hdf5Array Hdf5File::array(const std::string& name, int64_t rank, const std::vector<at::ScalarType>& dtypes) const {
  Hdf5Array array;
  array.where_ = path_ + ": " + name;
  if (!has(name)) throw DataError(array.where_ + ": no such dataset");
  array.id_ = open_with_chunk_cache(id_.get(), name);
  if (!array.id_) throw DataError(array.where_ + ": is not a dataset");
  const Hdf5Handle stored(H5Dget_type(array.id_.get()), H5Tclose);
  const bool known = understand(stored.get(), array.memory_type_, array.dtype_);
  if (!known || std::find(dtypes.begin(), dtypes.end(), array.dtype_) == dtypes.end())
    throw DataError(array.where_ + ": dtype " + type_name(stored.get()) + ", expected " + names(dtypes));
  array.shape_ = shape_of(array.id_.get());
  if (static_cast<int64_t>(array.shape_.size()) != rank)
    throw DataError(array.where_ + ": shape " + join(array.shape_) + ", expected " + std::to_string(rank) +
                    " dimensions");
  if (std::find(array.shape_.begin(), array.shape_.end(), 0) != array.shape_.end())
    throw DataError(array.where_ + ": shape " + join(array.shape_) + ", which is empty");
  return array;
}

Hdf5Strings Hdf5File::strings(const std::string& name) const {
  Hdf5Strings strings;
  strings.where_ = path_ + ": " + name;
  if (!has(name)) throw DataError(strings.where_ + ": no such dataset");
  strings.id_ = Hdf5Handle(H5Dopen2(id_.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!strings.id_) throw DataError(strings.where_ + ": is not a dataset");
  strings.type_ = Hdf5Handle(H5Dget_type(strings.id_.get()), H5Tclose);
  const auto shape = shape_of(strings.id_.get());
  if (H5Tis_variable_str(strings.type_.get()) <= 0 || shape.size() != 1)
    throw DataError(strings.where_ + ": expected one dimension of variable-length UTF-8 strings");
  strings.size_ = shape[0];
  return strings;
}

std::string Hdf5File::root_text(const std::string& name) const {
  silence_hdf5();
  const std::string what = path_ + ": root attribute '" + name + "'";
  if (H5Aexists(id_.get(), name.c_str()) <= 0) throw DataError(what + " is missing");
  const Hdf5Handle attribute(H5Aopen(id_.get(), name.c_str(), H5P_DEFAULT), H5Aclose);
  const Hdf5Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (H5Tget_class(type.get()) != H5T_STRING) throw DataError(what + " must be a string");
  if (H5Tis_variable_str(type.get()) <= 0) {
    std::string text(H5Tget_size(type.get()), '\0');
    H5Aread(attribute.get(), type.get(), text.data());
    return text.substr(0, text.find('\0'));
  }
  char* raw = nullptr;
  H5Aread(attribute.get(), type.get(), &raw);
  std::string text = raw ? raw : "";
  H5free_memory(raw);
  return text;
}

int64_t Hdf5File::root_integer(const std::string& name) const {
  silence_hdf5();
  const std::string what = path_ + ": root attribute '" + name + "'";
  if (H5Aexists(id_.get(), name.c_str()) <= 0) throw DataError(what + " is missing");
  const Hdf5Handle attribute(H5Aopen(id_.get(), name.c_str(), H5P_DEFAULT), H5Aclose);
  const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose);
  int64_t value = 0;
  if (H5Sget_simple_extent_npoints(space.get()) != 1 || H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0)
    throw DataError(what + " must be an integer");
  return value;
}

}  // namespace memsieve::diffusion
