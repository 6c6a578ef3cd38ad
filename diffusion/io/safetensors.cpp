#include <ATen/ops/empty.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/json_text.h>
#include <diffusion/io/safetensors.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <vector>

namespace memsieve::diffusion {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace {

using Json = nlohmann::json;

constexpr uint64_t max_header = 100'000'000;  // the limit of the reference implementation

const std::vector<std::pair<std::string, at::ScalarType>>& dtypes() {
  static const std::vector<std::pair<std::string, at::ScalarType>> table = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
      {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};
  return table;
}

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;  // bytes after the header
};

class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    detail::require_regular_file<DataError>(path);
    std::error_code error;
    stream_.open(path, std::ios::binary);
    if (!stream_) fail("cannot be opened");
    size_ = std::filesystem::file_size(path, error);
    if (error) fail("cannot be read: " + error.message());
    if (size_ < 8) fail("truncated: shorter than its 8-byte header length");
  }
  [[noreturn]] void fail(const std::string& why) const { throw DataError(path_ + ": " + why); }
  [[noreturn]] void fail(const std::string& tensor, const std::string& why) const {
    fail("tensor " + in_quotes(tensor) + ": " + why);
  }
  uint64_t size() const { return size_; }
  void read(uint64_t at, void* out, uint64_t bytes) {
    stream_.seekg(static_cast<std::streamoff>(at));
    stream_.read(static_cast<char*>(out), static_cast<std::streamsize>(bytes));
    if (!stream_) fail("cannot be read to its end");
  }

 private:
  std::string path_;
  std::ifstream stream_;
  uint64_t size_ = 0;
};

// nlohmann's parser keeps the last of two equal keys; a file with two tensors of one name is damaged or meant
// to mislead.
Json parse_header(const std::string& text, const File& file) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) {
      if (keys.size() > 2) file.fail("header: nested too deeply");
      keys.emplace_back();
    }
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      file.fail("header: key " + in_quotes(value.get<std::string>()) + " stands there twice");
    return true;
  };
  try {
    Json header = Json::parse(text, watch);
    if (header.is_object()) return header;
  } catch (const Json::exception&) {
  }
  file.fail("header is not a JSON object; not a safetensors file, or damaged");
}

at::ScalarType parse_dtype(const Json& value, const std::string& name, const File& file) {
  for (const auto& [text, dtype] : dtypes())
    if (value == text) return dtype;
  file.fail(name, "unknown dtype " + printable(json_text(value)));
}

bool is_unsigned(const Json& value) {
  return value.is_number_unsigned();
}

// Multiplies in an order that cannot overflow: stops as soon as the product exceeds what the file can hold. Sizes of an
// empty tensor count too, as torch multiplies them for its strides.
uint64_t bytes_of_shape(const Entry& entry, uint64_t limit, const File& file) {
  const bool empty = std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end();
  if (empty) limit = INT32_MAX;
  uint64_t bytes = c10::elementSize(entry.dtype);
  for (const int64_t n : entry.shape) {
    if (static_cast<uint64_t>(n) > limit / bytes)
      file.fail(entry.name, empty ? "its shape is too large" : "its shape needs more bytes than the file has");
    bytes *= static_cast<uint64_t>(std::max<int64_t>(n, 1));
  }
  return empty ? 0 : bytes;
}

Entry parse_entry(const std::string& name, const Json& value, uint64_t data_bytes, const File& file) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets"))
    file.fail(name, "its header entry must hold dtype, shape and data_offsets");
  Entry entry{name, parse_dtype(value["dtype"], name, file), {}, 0, 0};
  const Json &shape = value["shape"], &offsets = value["data_offsets"];
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), is_unsigned) || shape.size() > 64)
    file.fail(name, "shape must be a list of sizes");
  for (const Json& n : shape) {
    if (n.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
      file.fail(name, "shape " + printable(shape.dump()) + " is too large");
    entry.shape.push_back(n.get<int64_t>());
  }
  if (!offsets.is_array() || offsets.size() != 2 || !std::all_of(offsets.begin(), offsets.end(), is_unsigned))
    file.fail(name, "data_offsets must be [begin, end]");
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.begin > entry.end || entry.end > data_bytes)
    file.fail(name, "data_offsets " + printable(offsets.dump()) + " lie outside the file's " +
                        std::to_string(data_bytes) + " bytes of data; truncated?");
  if (bytes_of_shape(entry, data_bytes, file) != entry.end - entry.begin)
    file.fail(name, "data_offsets " + printable(offsets.dump()) + " do not fit shape " + printable(shape.dump()));
  return entry;
}

// The format has no holes and no overlaps: each tensor begins where the one before it ends.
void check_layout(std::vector<Entry>& entries, uint64_t data_bytes, const File& file) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t place = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != place)
      file.fail(entry.name, entry.begin < place ? "overlaps another tensor" : "leaves a hole before it");
    place = entry.end;
  }
  if (place != data_bytes)
    file.fail(std::to_string(data_bytes - place) + " bytes after the last tensor belong to none");
}

at::Tensor allocate(const Entry& entry, const File& file) {
  try {
    return at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
  } catch (const c10::Error&) {
    file.fail(entry.name, "no memory for its " + std::to_string(entry.end - entry.begin) + " bytes");
  }
}

void read_metadata(const Json& value, Metadata* metadata, const File& file) {
  if (!value.is_object()) file.fail("header: __metadata__ must be an object of strings");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) file.fail("header: __metadata__: " + in_quotes(key) + " must be a string");
    if (metadata != nullptr) (*metadata)[key] = text.get<std::string>();
  }
}

[[noreturn]] void refuse_to_store(const std::string& path, const std::string& name, at::ScalarType dtype) {
  throw DataError(path + ": tensor '" + name + "': cannot be stored, dtype " + c10::toString(dtype));
}

std::string header_text(const TensorMap& tensors, const Metadata& metadata, const std::string& path) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t place = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto found = std::find_if(dtypes().begin(), dtypes().end(),
                                    [dtype = tensor.scalar_type()](const auto& row) { return row.second == dtype; });
    if (found == dtypes().end() || name == "__metadata__") refuse_to_store(path, name, tensor.scalar_type());
    header[name] = {
        {"dtype", found->first}, {"shape", tensor.sizes().vec()}, {"data_offsets", {place, place + tensor.nbytes()}}};
    place += tensor.nbytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // keeps the data aligned, as the format asks
  return text;
}

}  // namespace

std::string in_brackets(at::IntArrayRef shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

TensorMap load_safetensors(const std::string& path, Metadata* metadata) {
  File file(path);
  uint64_t length = 0;
  file.read(0, &length, 8);
  if (length > file.size() - 8)
    file.fail("header claims " + std::to_string(length) + " bytes, the file has " + std::to_string(file.size() - 8) +
              "; truncated, or not a safetensors file");
  if (length > max_header) file.fail("header of " + std::to_string(length) + " bytes is too large");
  std::string text(length, '\0');
  file.read(8, text.data(), length);
  const Json header = parse_header(text, file);
  const uint64_t data_bytes = file.size() - 8 - length;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__")
      read_metadata(value, metadata, file);
    else
      entries.push_back(parse_entry(name, value, data_bytes, file));
  }
  check_layout(entries, data_bytes, file);
  TensorMap tensors;
  for (const Entry& entry : entries) {
    at::Tensor tensor = allocate(entry, file);
    if (entry.end > entry.begin) file.read(8 + length + entry.begin, tensor.data_ptr(), entry.end - entry.begin);
    tensors.emplace(entry.name, std::move(tensor));
  }
  return tensors;
}

void save_safetensors(const std::string& path, const TensorMap& tensors, const Metadata& metadata) {
  const std::string header = header_text(tensors, metadata, path);
  const uint64_t length = header.size();
  AtomicFile file(path);
  file.write(&length, 8);
  file.write(header.data(), length);
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor plain = tensor.detach().cpu().contiguous();
    file.write(plain.data_ptr(), plain.nbytes());
  }
  file.commit();
}

}  // namespace memsieve::diffusion
