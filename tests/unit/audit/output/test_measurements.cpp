// What was measured is kept, and goes on where it ended.
#include <ATen/ATen.h>
#include <audit/output/measurements.h>
#include <memsieve/error.h>
#include <support/files.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <algorithm>

namespace of_test_measurements {

using namespace memsieve;
using namespace memsieve::audit;
using Catch::Matchers::Contains;

namespace {

Schema schema() {
  Schema keys;
  keys.integer("seed", 0, 0, 100, "").integer("batch", 1, 1, 100, "").incidental();
  return keys;
}

Question question(const std::string& overrides = "seed=1", const std::string& model = "m") {
  return {.command = "detect", .settings = resolve("", "test", schema(), {overrides}), .inputs = {{"model", model}}};
}

/// Units 0 .. count - 1 in batches of `size`; `calls` counts what was measured.
std::vector<UnitBatch> batches(int count, int size, int& calls) {
  std::vector<UnitBatch> all;
  for (int begin = 0; begin < count; begin += size) {
    UnitBatch batch;
    for (int i = begin; i < std::min(count, begin + size); ++i) batch.units.push_back("unit/" + std::to_string(i));
    batch.measure = [begin, n = batch.units.size(), &calls] {
      std::vector<Json> rows;
      for (size_t i = 0; i < n; ++i) rows.push_back({{"value", begin + static_cast<int>(i)}});
      calls += static_cast<int>(n);
      return rows;
    };
    all.push_back(std::move(batch));
  }
  return all;
}

class Folder {
 public:
  explicit Folder(Group& group) : group(group) {}
  std::string measure(int count, int size, int& calls, const Question& asked = question()) {
    Measurements measurements(path, asked, group);
    measure_all(measurements, batches(count, size, calls), "test", group);
    rows = measurements.rows();
    return testing::read_file(file);
  }
  testing::TemporaryFolder scratch;
  std::string path = scratch.file("out"), file = path + "/measurements.jsonl";
  Group& group;
  std::vector<Json> rows;
};

}  // namespace

TEST_CASE("a measurement cut off anywhere goes on to the same file") {
  Group group(Launch{}, at::kCPU);
  int calls = 0;
  Folder whole(group);
  const std::string text = whole.measure(7, 3, calls);
  REQUIRE((calls == 7 && whole.rows.size() == 7 && whole.rows[5]["unit"] == "unit/5" && whole.rows[5]["value"] == 5));
  CHECK((whole.measure(7, 3, calls) == text && calls == 7));
  for (const size_t end : {size_t{0}, size_t{1}, text.size() / 3, text.size() / 2, text.size() - 1}) {
    std::ofstream(whole.file, std::ios::trunc) << text.substr(0, end);
    CHECK(whole.measure(7, 3, calls) == text);
  }
}

TEST_CASE("measurements that answer another question are refused") {
  Group group(Launch{}, at::kCPU);
  int calls = 0;
  Folder folder(group);
  folder.measure(2, 1, calls);
  CHECK_THROWS_WITH(folder.measure(2, 1, calls, question("seed=2")), Contains("seed: 2") && Contains("seed: 1"));
  CHECK_THROWS_WITH(folder.measure(2, 1, calls, question("seed=1", "other")), Contains("another model"));
  Question other = question();
  other.command = "explain";
  CHECK_THROWS_WITH(folder.measure(2, 1, calls, other), Contains("detect") && Contains("explain"));
  other = question();
  other.settings = resolve("", "test", schema(), {"seed=1", "batch=5"});
  CHECK_NOTHROW(folder.measure(2, 1, calls, other));
  std::ofstream(folder.file, std::ios::app) << "nonsense\n";
  CHECK_THROWS_AS(folder.measure(2, 1, calls), DataError);
}

TEST_CASE("a damaged line is refused in words that name it") {
  Group group(Launch{}, at::kCPU);
  int calls = 0;
  Folder folder(group);
  const std::string text = folder.measure(2, 1, calls);
  const std::string header = text.substr(0, text.find('\n') + 1);
  const auto refused = [&](const std::string& damaged, const std::string& place) {
    std::ofstream(folder.file, std::ios::trunc) << damaged;
    CHECK_THROWS_AS(folder.measure(2, 1, calls), DataError);
    CHECK_THROWS_WITH(folder.measure(2, 1, calls), Contains(folder.file + place + ": is damaged"));
  };
  refused(header + R"({"unit":7,"value":0})" + "\n", ":2");
  for (const char* key : {"version", "command", "asked", "inputs"}) {
    Json head = Json::parse(header);
    head[key] = Json::array();
    refused(head.dump() + "\n", ":1");
  }
}

TEST_CASE("a row with a damaged value is refused by the name of its unit") {
  const auto reading = [](const Json& row) { (void)row.at("values").at(1).get<double>(); };
  const std::vector<Json> fine = {{{"unit", "unit/0"}, {"values", {1, 2.5}}}};
  CHECK_NOTHROW(read_rows(fine, reading));
  for (const Json& values : {Json("x"), Json({1, nullptr}), Json({1}), Json()}) {
    std::vector<Json> rows = fine;
    rows.push_back({{"unit", "unit/1"}, {"values", values}});
    CHECK_THROWS_AS(read_rows(rows, reading), DataError);
    CHECK_THROWS_WITH(read_rows(rows, reading), Contains("unit/1") && !Contains("exception"));
  }
}

TEST_CASE("two audits do not write to one folder") {
  Group group(Launch{}, at::kCPU);
  const testing::TemporaryFolder scratch;
  {
    const Measurements first(scratch.path(), question(), group);
    CHECK_THROWS_WITH(Measurements(scratch.path(), question(), group), Contains("is being written to by process"));
  }
  CHECK_NOTHROW(Measurements(scratch.path(), question(), group));
}

}  // namespace of_test_measurements
