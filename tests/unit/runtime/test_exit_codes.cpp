// What a program tells of an error, and the code that it ends with.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <memsieve/error.h>
#include <runtime/exit_codes.h>

#include <yaml-cpp/yaml.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

namespace of_test_exit_codes {

using namespace memsieve;
using namespace memsieve::runtime;

namespace {

c10::OutOfMemoryError out_of_memory() {
  return {{__func__, __FILE__, __LINE__}, "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB"};
}

}  // namespace

TEST_CASE("every kind of error has its exit code") {
  CHECK(exit_code_of(ConfigError("x")) == 2);
  CHECK(exit_code_of(DataError("x")) == 3);
  CHECK(exit_code_of(PeerError("x")) == 4);
  CHECK(exit_code_of(NonFiniteError("x")) == 5);
  CHECK(exit_code_of(out_of_memory()) == 2);
  CHECK(exit_code_of(std::runtime_error("[third_party/gloo/x.cc:81] Connection closed by peer")) == 4);
  CHECK(exit_code_of(std::runtime_error("x")) == 1);
}

namespace {

/// What `body` throws.
std::exception_ptr thrown(const std::function<void()>& body) {
  try {
    body();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace

TEST_CASE("what libraries throw has its exit code and one line that says where") {
  const std::vector<std::pair<int, std::function<void()>>> throwers{
      {3, [] { [[maybe_unused]] const auto read = nlohmann::json::parse("{"); }},
      {3, [] { nlohmann::json("\xff").dump(); }},
      {3, [] { nlohmann::json(3).at("x"); }},
      {2, [] { YAML::Load("["); }},
      {2, [] { (void)YAML::Load("a: b")["a"].as<int>(); }},
      {2, [] { throw std::bad_alloc(); }},
      {2, [] { at::empty({int64_t{1} << 60}); }},
      {3, [] { (void)std::filesystem::file_size("/nowhere/none"); }},
      {3,
       [] {
         std::ifstream in;
         in.exceptions(std::ios::failbit);
         in.open("/nowhere/none");
       }},
  };
  for (const auto& [code, body] : throwers) {
    const auto error = thrown(body);
    REQUIRE(error);
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      INFO(e.what());
      CHECK(exit_code_of(e) == code);
      CHECK(exit_code_of(PeerError("rank 0 failed: x", error)) == code);
      CHECK_THAT(error_line(e, "training"), Catch::StartsWith("training: ") && !Catch::Contains("\n"));
    }
  }
}

TEST_CASE("the guilty rank ends with the code of the cause, its peers with that of a peer's failure") {
  const PeerError guilty("rank 0 failed: x", std::make_exception_ptr(DataError("x")));
  CHECK(exit_code_of(guilty) == 3);
  CHECK(std::string(root_cause(guilty).what()) == "x");
  const PeerError nested("outer",
                         std::make_exception_ptr(PeerError("inner", std::make_exception_ptr(ConfigError("x")))));
  CHECK(exit_code_of(nested) == 2);
  const PeerError number("x", std::make_exception_ptr(42));
  CHECK(&root_cause(number) == &number);
  CHECK(exit_code_of(number) == 4);
}

TEST_CASE("an error is told in one line") {
  CHECK(error_line(ConfigError("run.yaml:3: x\nmore"), "training") == "run.yaml:3: x");
  CHECK(error_line(std::runtime_error("[a/gloo/transport/x.cc:81] Connection closed by peer"), "training") ==
        "training: a peer or the network failed: Connection closed by peer");
  using Catch::Contains;
  CHECK_THAT(error_line(out_of_memory(), "training"),
             Catch::StartsWith("CUDA out of memory. Tried to allocate 2 GiB;") && Contains("train_batch_size") &&
                 !Contains("GPU 0 has"));
}

}  // namespace of_test_exit_codes
