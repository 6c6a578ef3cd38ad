#include <diffusion/io/hdf5_attribute.h>
#include <memsieve/detail/hdf5_handle.h>
#include <memsieve/error.h>

namespace memsieve::diffusion {

using detail::Hdf5Handle;
using detail::silence_hdf5;

namespace {

constexpr size_t kMostText = size_t{1} << 16;

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

  bool is_integer() const { return kind == H5T_INTEGER && size <= 8; }
  bool is_number() const { return is_integer() || (kind == H5T_FLOAT && size <= 16); }
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
  if (H5Tis_variable_str(attribute.type.get()) <= 0) {
    if (attribute.size > kMostText) throw DataError(what + " is a string of more than 64 KiB");
    std::string text(attribute.size, '\0');
    attribute.read(attribute.type.get(), text.data(), what);
    return text.substr(0, text.find('\0'));
  }
  char* raw = nullptr;
  attribute.read(attribute.type.get(), &raw, what);
  std::string text = raw != nullptr ? raw : "";
  H5free_memory(raw);
  return text;
}

}  // namespace memsieve::diffusion
