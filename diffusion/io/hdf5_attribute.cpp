#include <diffusion/io/hdf5_attribute.h>
#include <diffusion/io/hdf5_open.h>
#include <diffusion/io/hdf5_text.h>
#include <memsieve/detail/hdf5_handle.h>
#include <memsieve/error.h>

#include <algorithm>

namespace memsieve::diffusion {

using detail::Hdf5Handle;
using detail::silence_hdf5;

namespace {

constexpr size_t kMostText = size_t{1} << 16;

// A file may describe numbers of its own, with any place for their bits, and HDF5 1.10 believes it.
std::vector<hid_t> integers() {
  return {H5T_STD_I8LE,  H5T_STD_I16LE, H5T_STD_I32LE, H5T_STD_I64LE, H5T_STD_U8LE,  H5T_STD_U16LE,
          H5T_STD_U32LE, H5T_STD_U64LE, H5T_STD_I8BE,  H5T_STD_I16BE, H5T_STD_I32BE, H5T_STD_I64BE,
          H5T_STD_U8BE,  H5T_STD_U16BE, H5T_STD_U32BE, H5T_STD_U64BE};
}
std::vector<hid_t> floats() {
  return {H5T_IEEE_F32LE, H5T_IEEE_F64LE, H5T_IEEE_F32BE, H5T_IEEE_F64BE, H5T_NATIVE_LDOUBLE};
}

struct Attribute {
  Hdf5Handle id, type;
  H5T_class_t kind = H5T_NO_CLASS;
  size_t size = 0;
  hssize_t count = 0;

  Attribute(hid_t object, const std::string& name, const std::string& what) {
    silence_hdf5();
    if (H5Aexists(object, name.c_str()) <= 0) throw DataError(what + " is missing");
    id = Hdf5Handle(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
    if (!id) throw DataError(what + " cannot be read; the file is damaged, make it anew");
    type = Hdf5Handle(H5Aget_type(id.get()), H5Tclose);
    kind = H5Tget_class(type.get());
    size = H5Tget_size(type.get());
    const Hdf5Handle space(H5Aget_space(id.get()), H5Sclose);
    count = H5Sget_simple_extent_npoints(space.get());
  }

  bool is_integer() const { return kind == H5T_INTEGER && is_one_of(integers()); }
  bool is_number() const { return is_integer() || (kind == H5T_FLOAT && is_one_of(floats())); }
  bool is_one_of(const std::vector<hid_t>& types) const {
    const auto same = [this](hid_t known) { return H5Tequal(type.get(), known) > 0; };
    return std::any_of(types.begin(), types.end(), same) || (kind == H5T_FLOAT && same(hdf5_half_type().get()));
  }
  void read(hid_t as, void* out, const std::string& what) const {
    if (H5Aread(id.get(), as, out) < 0) throw DataError(what + " cannot be read; the file is damaged, make it anew");
  }
};

}  // namespace

std::vector<double> hdf5_number_attribute(hid_t object, const std::string& name, int64_t count,
                                          const std::string& what) {
  const Attribute attribute(object, name, what);
  if (!attribute.is_number() || attribute.count != count)
    throw DataError(what + " must hold " + std::to_string(count) + " number" + (count == 1 ? "" : "s"));
  std::vector<double> values(static_cast<size_t>(count));
  attribute.read(H5T_NATIVE_DOUBLE, values.data(), what);
  return values;
}

int64_t hdf5_integer_attribute(hid_t object, const std::string& name, const std::string& what) {
  const Attribute attribute(object, name, what);
  if (!attribute.is_integer() || attribute.count != 1) throw DataError(what + " must be an integer");
  int64_t value = 0;
  attribute.read(H5T_NATIVE_INT64, &value, what);
  return value;
}

std::string hdf5_text_attribute(hid_t object, const std::string& name, const std::string& what) {
  const Attribute attribute(object, name, what);
  if (attribute.kind != H5T_STRING) throw DataError(what + " must be a string");
  if (attribute.count != 1) throw DataError(what + " must be one string");
  const auto require_short = [&](size_t size) {
    if (size > kMostText) throw DataError(what + " is a string of more than 64 KiB");
  };
  if (H5Tis_variable_str(attribute.type.get()) > 0) {
    const auto reference = [&](hid_t as, void* out) { return H5Aread(attribute.id.get(), as, out) >= 0; };
    std::string text = Hdf5TextReader(attribute.id.get()).read(reference, what);
    require_short(text.size());
    return text;
  }
  require_short(attribute.size);
  std::string text(attribute.size, '\0');
  attribute.read(attribute.type.get(), text.data(), what);
  return text.substr(0, text.find('\0'));
}

}  // namespace memsieve::diffusion
