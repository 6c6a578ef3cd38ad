#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/io/hdf5_attribute.h>
#include <diffusion/io/hdf5_file.h>
#include <diffusion/io/hdf5_open.h>

#include <algorithm>

namespace memsieve::diffusion {

namespace {

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
  const Hdf5Handle half = hdf5_half_type();
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

}  // namespace

Hdf5File::Hdf5File(const std::string& path) : watch_(path), id_(open_hdf5(path, descriptor_)) {}

bool Hdf5File::has(const std::string& name) const {
  silence_hdf5();
  return H5Lexists(id_.get(), name.c_str(), H5P_DEFAULT) > 0;
}

Hdf5Array Hdf5File::open_array(const std::string& name, const std::vector<at::ScalarType>& dtypes,
                               Written written) const {
  Hdf5Array array;
  array.where_ = path() + ": " + name;
  array.id_ = open_hdf5_dataset(id_.get(), name, array.where_);
  const Hdf5Handle stored(H5Dget_type(array.id_.get()), H5Tclose);
  const bool known = understand(stored.get(), array.memory_type_, array.dtype_);
  if (!known || std::find(dtypes.begin(), dtypes.end(), array.dtype_) == dtypes.end())
    throw DataError(array.where_ + ": dtype " + type_name(stored.get()) + ", expected " + names(dtypes));
  array.shape_ = hdf5_shape(array.id_.get());
  require_hdf5_size(id_.get(), array.id_.get(), array.shape_, written == Written::all_or_nothing, array.where_);
  array.chunks_ = std::make_unique<Hdf5Chunks>(array.id_.get(), H5Tget_size(stored.get()));
  return array;
}

Hdf5Array Hdf5File::array(const std::string& name, int64_t rank, const std::vector<at::ScalarType>& dtypes,
                          Written written) const {
  Hdf5Array array = open_array(name, dtypes, written);
  const auto refuse = [&](const std::string& why) {
    throw DataError(array.where_ + ": shape " + hdf5_shape_text(array.shape_) + why);
  };
  if (static_cast<int64_t>(array.shape_.size()) != rank) refuse(", expected " + std::to_string(rank) + " dimensions");
  if (std::find(array.shape_.begin(), array.shape_.end(), 0) != array.shape_.end()) refuse(", which is empty");
  return array;
}

Hdf5Strings Hdf5File::strings(const std::string& name) const {
  Hdf5Strings strings;
  strings.where_ = path() + ": " + name;
  if (has(name + "_bytes") || has(name + "_offsets")) {
    if (has(name))
      throw DataError(path() + ": holds both " + name + " and " + name + "_bytes; exactly one of them is needed");
    strings.offsets_ = array(name + "_offsets", 1, {at::kLong});
    strings.bytes_ = open_array(name + "_bytes", {at::kByte}, Written::all);  // empty where all texts are
    if (strings.bytes_.shape_.size() != 1) throw DataError(strings.bytes_.where_ + ": must have one dimension");
    strings.size_ = strings.offsets_.shape_[0] - 1;
    return strings;
  }
  strings.id_ = open_hdf5_dataset(id_.get(), name, strings.where_);
  const Hdf5Handle type(H5Dget_type(strings.id_.get()), H5Tclose);
  const auto shape = hdf5_shape(strings.id_.get());
  if (H5Tis_variable_str(type.get()) <= 0 || shape.size() != 1)
    throw DataError(strings.where_ + ": expected one dimension of variable-length UTF-8 strings");
  require_hdf5_size(id_.get(), strings.id_.get(), shape, false, strings.where_);
  strings.reader_ = Hdf5TextReader(strings.id_.get());
  strings.chunks_ = std::make_unique<Hdf5Chunks>(strings.id_.get(), strings.reader_.bytes());
  strings.size_ = shape[0];
  return strings;
}

std::string Hdf5File::root_text(const std::string& name) const {
  return hdf5_text_attribute(id_.get(), name, path() + ": root attribute '" + name + "'");
}

int64_t Hdf5File::root_integer(const std::string& name) const {
  return hdf5_integer_attribute(id_.get(), name, path() + ": root attribute '" + name + "'");
}

}  // namespace memsieve::diffusion
