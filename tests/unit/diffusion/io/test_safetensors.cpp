#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/safetensors.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <random>

#include <support/files.h>
#include <support/message_of.h>

namespace of_test_safetensors {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Matchers::Contains;
using memsieve::DataError;

namespace {

std::string file_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string load_error(const std::string& bytes) {
  TemporaryFolder folder;
  const std::string path = folder.file("x.safetensors");
  write_file(path, bytes);
  const std::string message = message_of<DataError>([&] { load_safetensors(path); });
  CHECK_THAT(message, Contains(path));
  return message;
}

TensorMap some_tensors() {
  at::manual_seed(1);
  return {{"a.weight", at::randn({3, 4, 2})},
          {"b", at::arange(7)},
          {"empty", at::empty({0, 5})},
          {"scalar", at::full({}, 2.5, at::kDouble)}};
}

}  // namespace

TEST_CASE("safetensors: every dtype survives writing and reading") {
  TemporaryFolder folder;
  TensorMap written;
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                           at::kChar, at::kByte, at::kBool})
    written.emplace(c10::toString(dtype), at::arange(0, 6).reshape({2, 3}).to(dtype));
  written.emplace("transposed", at::arange(6).reshape({2, 3}).t());
  written.emplace("channels_last", at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
  for (const auto& [name, tensor] : some_tensors()) written.emplace(name, tensor);
  save_safetensors(folder.file("x"), written, {{"format", "pt"}, {"step", "12"}});
  Metadata metadata;
  const TensorMap read = load_safetensors(folder.file("x"), &metadata);
  CHECK(metadata == Metadata{{"format", "pt"}, {"step", "12"}});
  REQUIRE(read.size() == written.size());
  for (const auto& [name, tensor] : written) {
    INFO(name);
    CHECK(read.at(name).scalar_type() == tensor.scalar_type());
    CHECK(at::equal(read.at(name), tensor));
  }
  CHECK(folder.entries() == 1);
}

TEST_CASE("safetensors: a save that fails leaves the old file and nothing else") {
  TemporaryFolder folder;
  save_safetensors(folder.file("x"), some_tensors());
  const std::string before = read_file(folder.file("x"));
  const TensorMap bad = {{"first", at::zeros({1000})}, {"second", at::zeros({2}, at::kComplexFloat)}};
  CHECK_THAT(message_of<DataError>([&] { save_safetensors(folder.file("x"), bad); }), Contains("'second'"));
  {
    AtomicFile unfinished(folder.file("x"));
    unfinished.write("abc", 3);
  }
  CHECK(read_file(folder.file("x")) == before);
  CHECK(folder.entries() == 1);
  CHECK_THAT(message_of<DataError>([&] { save_safetensors(folder.file("no/x"), some_tensors()); }),
             Contains("no/x") && Contains("No such file"));
}

TEST_CASE("safetensors: a file cut anywhere is an error") {
  TemporaryFolder folder;
  save_safetensors(folder.file("x"), some_tensors());
  const std::string whole = read_file(folder.file("x"));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_file(folder.file("cut"), whole.substr(0, length));
    CHECK_THROWS_AS(load_safetensors(folder.file("cut")), DataError);
  }
  CHECK_THAT(message_of<DataError>([&] { load_safetensors(folder.file("absent")); }), Contains("cannot be opened"));
}

namespace {

// One of the things that an attacker or a failing disk does to a header.
std::string mutate(std::string header, std::mt19937& random) {
  static const std::string pieces[] = {"0",
                                       "-1",
                                       "4",
                                       "18446744073709551615",
                                       "9223372036854775807",
                                       "4294967296",
                                       "1e30",
                                       "[]",
                                       "{}",
                                       "null",
                                       "\"F32\"",
                                       "\"BF16\"",
                                       "\"U8\"",
                                       ",",
                                       ":",
                                       "}",
                                       "\\u0000",
                                       "\xff\xfe",
                                       "\n"};
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const std::size_t at = below(header.size()), length = std::min(1 + below(12), header.size() - at);
  switch (below(6)) {
    case 0:
      header[at] = static_cast<char>(header[at] ^ (1 << below(8)));
      break;
    case 1:
      header.erase(at, length);
      break;
    case 2:
      header.insert(at, pieces[below(std::size(pieces))]);
      break;
    case 3:
      header.insert(below(header.size()), header.substr(at, length));
      break;
    case 4:
      header.replace(at, length, pieces[below(std::size(pieces))]);
      break;
    default:  // another number where a number stood
      if (const auto digit = header.find_first_of("0123456789", at); digit != std::string::npos)
        header.replace(digit, 1, pieces[below(7)]);
  }
  return header;
}

// Whatever is read is exactly the bytes that the file holds after its header.
void check_is_the_data(const TensorMap& tensors, const std::string& data) {
  std::size_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    bytes += tensor.nbytes();
    const std::string piece(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
    REQUIRE(data.find(piece) != std::string::npos);
  }
  REQUIRE(bytes == data.size());
}

}  // namespace

TEST_CASE("safetensors: a mutated header is one clear line or the right tensors, never worse") {
  TemporaryFolder folder;
  save_safetensors(folder.file("x"), some_tensors(), {{"format", "pt"}});
  const std::string whole = read_file(folder.file("x"));
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  const std::string header = whole.substr(8, length), data = whole.substr(8 + length);
  std::mt19937 random(11);
  int refused = 0, read = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string mutated = mutate(header, random);
    while (random() % 3 == 0 && !mutated.empty()) mutated = mutate(mutated, random);
    std::string bytes = file_bytes(mutated, data);
    if (random() % 8 == 0) bytes[random() % 8] = static_cast<char>(random());  // its length lies, too
    write_file(folder.file("mutated"), bytes);
    try {
      const TensorMap tensors = load_safetensors(folder.file("mutated"));
      check_is_the_data(tensors, bytes.substr(bytes.size() - data.size()));
      ++read;
    } catch (const DataError& error) {
      const std::string text = error.what();
      INFO(text);
      REQUIRE(std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 32; }));
      REQUIRE(text.size() < 1000);
      ++refused;
    }
  }
  INFO(refused << " refused, " << read << " read");
  CHECK(refused > 2000);
  CHECK(read > 100);
}

TEST_CASE("safetensors: hostile files are refused by name") {
  const std::string four(4, '\0'), eight(8, '\0');
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  // A length that only claims to be there: refused before anything of that size is asked for.
  CHECK_THAT(load_error(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f") + "{}"), Contains("truncated"));
  CHECK_THAT(load_error(file_bytes("{ }", "").substr(0, 10)), Contains("truncated"));
  CHECK_THAT(load_error(file_bytes("[]", "")), Contains("not a JSON object"));
  CHECK_THAT(load_error(file_bytes("{" + a, four)), Contains("not a JSON object"));
  CHECK_THAT(load_error(file_bytes(std::string(100000, '['), "")), Contains("header"));
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  CHECK_THAT(load_error(file_bytes("{\"a\":" + deep + "}", "")), Contains("'a'"));
  CHECK_THAT(load_error(file_bytes(R"({"a":{"b":{"c":{}}}})", "")), Contains("nested too deeply"));
  const std::string whole = R"({"a":{"shape":[1],"data_offsets":[0,4],"dtype":)" + deep + "}}";
  CHECK_THAT(load_error(file_bytes(whole, four)), Contains("'a'") && Contains("nested too deeply"));
  CHECK_THAT(load_error(file_bytes("{" + a + "," + a + "}", four)), Contains("'a'") && Contains("twice"));
  CHECK_THAT(load_error(file_bytes("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", four)),
             Contains("overlaps"));
  CHECK_THAT(load_error(file_bytes("{" + a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}})", eight)),
             Contains("'b'") && Contains("hole"));
  CHECK_THAT(load_error(file_bytes("{" + a + "}", eight)), Contains("4 bytes after the last"));
  CHECK_THAT(load_error(file_bytes("{\"__metadata__\":{\"k\":1}," + a + "}", four)), Contains("__metadata__: 'k'"));
  CHECK_THAT(load_error(file_bytes("{\"__metadata__\":3," + a + "}", four)), Contains("__metadata__"));
  CHECK_THAT(load_error(file_bytes("{\"\xff\":{}}", "")), Contains("not a JSON object"));
  CHECK_THAT(load_error(file_bytes("", "")), Contains("not a JSON object"));
  CHECK_THAT(load_error(file_bytes(a, four)), Contains("not a JSON object"));
  CHECK_THAT(load_error(file_bytes(R"({"a\nb":3})", "")), Contains("'a?b'"));
  CHECK_THAT(load_error(file_bytes("{\"" + std::string(100000, 'n') + "\":3}", "")), Contains("nnn...'"));
  CHECK_THAT(load_error(file_bytes("{" + a + "}", "abc")), Contains("'a'") && Contains("truncated"));
}

TEST_CASE(
    "safetensors: a sparse file of a terabyte, a folder and a pipe are refused in time and memory of a small "
    "one") {
  TemporaryFolder folder;
  const std::string path = folder.file("sparse");
  write_file(path, file_bytes(R"({"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}})", ""));
  const uint64_t header = std::filesystem::file_size(path);
  std::filesystem::resize_file(path, header + (uint64_t{1} << 40));
  CHECK_THAT(message_of<DataError>([&] { load_safetensors(path); }),
             Contains(path) && Contains("'a'") && Contains("no memory for its 1099511627776 bytes"));
  CHECK_THAT(message_of<DataError>([&] { load_safetensors(folder.file(".")); }), Contains("is not a file"));
  REQUIRE(::mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  CHECK_THAT(message_of<DataError>([&] { load_safetensors(folder.file("pipe")); }), Contains("is not a file"));
}

TEST_CASE("safetensors: an entry that cannot be right is refused by name") {
  const auto with = [](const std::string& entry) {
    return load_error(file_bytes("{\"the.name\":" + entry + "}", std::string(8, '\0')));
  };
  const std::string one_of[] = {
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,16]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[4,0]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0.0,8.0]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]})",
      R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
      R"({"dtype":"F32","shape":[0,9223372036854775807,9223372036854775807],"data_offsets":[0,0]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,-8]})",
      R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,"8"]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":{"0":8}})",
      R"({"dtype":"f32","shape":[2],"data_offsets":[0,8]})",
      R"({"dtype":null,"shape":[2],"data_offsets":[0,8]})",
      R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})",
      R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})",
      R"({"dtype":"F32","shape":[2]})",
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1})",
      "3",
  };
  for (const std::string& entry : one_of) {
    INFO(entry);
    CHECK_THAT(with(entry), Contains("'the.name'"));
  }
}

}  // namespace of_test_safetensors
