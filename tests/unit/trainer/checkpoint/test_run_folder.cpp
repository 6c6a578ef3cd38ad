// The run folder and its checkpoints: never overwritten unasked, whole or refused.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/loop/evaluate.h>
#include <trainer/metrics/metrics.h>
#include <trainer/checkpoint/run_folder.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

using namespace memsieve;
using namespace memsieve::trainer;
namespace fs = std::filesystem;

namespace {

class Scratch {
 public:
  Scratch() : path_((fs::temp_directory_path() / "memsieve-loop-XXXXXX").string()) { REQUIRE(mkdtemp(path_.data())); }
  ~Scratch() { fs::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path) << text;
}

std::string read(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

CheckpointParts some_parts() {
  CheckpointParts parts;
  parts.weights_name = "unet";
  parts.save_weights = [](const std::string& folder) { write(folder + "/config.json", "{}"); };
  parts.optimizer = {{"updates", at::zeros({3})}};
  return parts;
}

std::string refusal(const std::string& folder) {
  try {
    read_checkpoint_state(folder);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a folder that holds a run is refused") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("deep/run"));
  CHECK_NOTHROW(folder.refuse_if_used("here"));
  folder.make("here");
  CHECK_NOTHROW(folder.refuse_if_used("here"));
  folder.write_run_files({.run_id = "abc", .world_size = 2, .device = "cpu", .config_yaml = "seed: 1\n"});
  CHECK(folder.run_id() == "abc");
  CHECK_THROWS_WITH(folder.refuse_if_used("run.yaml:3: output_dir"), Catch::StartsWith("run.yaml:3: output_dir") &&
                                                                         Catch::Contains("abc") &&
                                                                         Catch::Contains("--resume-from"));
  folder.forget();
  CHECK_NOTHROW(folder.refuse_if_used("here"));
}

TEST_CASE("a folder that cannot be made is a configuration error") {
  const Scratch scratch;
  write(scratch.file("file"), "");
  CHECK_THROWS_AS(RunFolder(scratch.file("file")).make("here"), ConfigError);
  CHECK_THROWS_AS(RunFolder(scratch.file("file/run")).make("here"), ConfigError);
}

TEST_CASE("old checkpoints and leftovers go") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("run"));
  for (const char* name : {"step-000002", "step-000010", "step-1000000", "step-000004.tmp", "other"}) {
    fs::create_directories(folder.file(std::string("checkpoints/") + name));
  }
  CHECK(folder.checkpoints() == std::vector<int64_t>{2, 10, 1000000});
  folder.tidy();
  folder.rotate(0, 1000000);
  CHECK(folder.checkpoints().size() == 3);
  CHECK_FALSE(fs::exists(folder.file("checkpoints/step-000004.tmp")));
  folder.rotate(2, 1000000);
  CHECK(folder.checkpoints() == std::vector<int64_t>{10, 1000000});
  CHECK(fs::exists(folder.file("checkpoints/other")));
}

TEST_CASE("the checkpoint just written stays, also after resuming from an early one") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("run"));
  for (const int64_t step : {100, 200, 300}) fs::create_directories(folder.checkpoint(step));
  folder.abandon_after(100);  // resumed from there: 200 and 300 are of another course
  CHECK(folder.checkpoints() == std::vector<int64_t>{100});
  CHECK(fs::exists(folder.file("checkpoints/step-000300.abandoned")));
  fs::create_directories(folder.checkpoint(300));
  folder.abandon_after(200);  // once more
  CHECK(folder.checkpoints() == std::vector<int64_t>{100});
  fs::create_directories(folder.checkpoint(150));
  folder.rotate(0, 150);
  CHECK(fs::exists(folder.file("checkpoints/step-000300.abandoned")));
  folder.rotate(1, 150);
  CHECK(folder.checkpoints() == std::vector<int64_t>{150});
  CHECK_FALSE(fs::exists(folder.file("checkpoints/step-000300.abandoned")));
  fs::create_directories(folder.checkpoint(160));
  folder.rotate(2, 160);
  CHECK(folder.checkpoints() == std::vector<int64_t>{150, 160});
}

TEST_CASE("a run that has done everything says so until it begins anew") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("run"));
  CHECK(folder.finished_steps() == 0);
  folder.make("here");
  folder.write_run_files({.run_id = "0123456789abcdef", .world_size = 1, .device = "cpu", .config_yaml = "seed: 1\n"});
  CHECK(folder.finished_steps() == 0);
  folder.finish(880);
  CHECK(folder.finished_steps() == 880);
  CHECK(folder.run_id() == "0123456789abcdef");
  folder.write_run_files({.run_id = "0123456789abcdef", .world_size = 1, .device = "cpu", .config_yaml = "seed: 1\n"});
  CHECK(folder.finished_steps() == 0);
}

TEST_CASE("a run that ended before its first checkpoint leaves nothing, not even half of one") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("run"));
  folder.make("here");
  folder.write_run_files({.run_id = "0123456789abcdef", .world_size = 1, .device = "cpu", .config_yaml = "seed: 1\n"});
  fs::create_directories(folder.file("checkpoints/step-000004.tmp"));
  folder.forget();
  CHECK_NOTHROW(folder.refuse_if_used("here"));
  CHECK_FALSE(fs::exists(folder.file("checkpoints")));
}

TEST_CASE("a checkpoint comes back; a torn one says which piece") {
  const Scratch scratch;
  const std::string folder = scratch.file("step-000007");
  CheckpointState state;
  state.step = 7;
  state.seed = 18446744073709551615u;
  state.meaning = "seed: 1\n";
  state.global_batch = 8;
  state.stream_position = 91;
  write_checkpoint(folder, state, some_parts());
  write_checkpoint(folder, state, some_parts());  // replaces the first
  CHECK_FALSE(fs::exists(folder + ".tmp"));
  const CheckpointState back = read_checkpoint_state(folder);
  CHECK(back.step == 7);
  CHECK(back.seed == state.seed);
  CHECK(back.meaning == state.meaning);
  CHECK(back.stream_position == 91);
  CHECK_FALSE(back.has_ema);

  using Catch::Contains;
  SECTION("short file") {
    fs::resize_file(folder + "/optimizer.safetensors", 9);
    CHECK_THAT(refusal(folder), Contains("optimizer.safetensors") && Contains("torn") && Contains("--resume-from"));
  }
  SECTION("missing file") {
    fs::remove(folder + "/unet/config.json");
    CHECK_THAT(refusal(folder), Contains("unet/config.json") && Contains("missing"));
  }
  SECTION("torn state") {
    fs::resize_file(folder + "/state.json", 30);
    CHECK_THAT(refusal(folder), Contains("state.json"));
  }
  SECTION("an older version, which passed over no sample") {
    std::string text = read(folder + "/state.json");
    text.erase(text.find("\"stream_position\""), std::string("\"stream_position\": 91,").size());
    write(folder + "/state.json", text);
    CHECK(read_checkpoint_state(folder).stream_position == 7 * 8);
  }
  SECTION("a newer version") {
    std::string text = read(folder + "/state.json");
    text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
    write(folder + "/state.json", text);
    CHECK_THAT(refusal(folder), Contains("state.json: is of version 2") && Contains("up to 1"));
  }
  SECTION("no state") {
    fs::remove(folder + "/state.json");
    CHECK_THAT(refusal(folder), Contains("state.json"));
  }
  SECTION("no folder") {
    CHECK_THAT(refusal(folder + "x"), Contains("no such"));
  }
}

TEST_CASE("a checkpoint that cannot be finished leaves the old one") {
  const Scratch scratch;
  const std::string folder = scratch.file("step-000007");
  CheckpointState state;
  write_checkpoint(folder, state, some_parts());
  CheckpointParts broken = some_parts();
  broken.save_weights = [](const std::string&) { throw DataError("disk full"); };
  state.step = 9;
  CHECK_THROWS_AS(write_checkpoint(folder, state, broken), DataError);
  CHECK(read_checkpoint_state(folder).step == 0);
}

TEST_CASE("metrics wait for the sieve's report and keep their order") {
  const Scratch scratch;
  const std::string path = scratch.file("metrics.jsonl");
  MetricsOptions options;
  options.jsonl = path;
  options.channels.emplace();
  options.drifts = true;
  MetricsWriter writer(options);
  StepMetrics step;
  StepReport report;
  report.drift = 0.75;
  report.mean_score = std::nan("");
  step.step = 0;
  writer.step(step);
  writer.flush();
  CHECK(read(path).empty());
  report.step = 1;
  writer.report(report);
  report.step = 0;
  report.dropped = 3;
  writer.report(report);
  step.step = 1;
  writer.step(step);
  writer.flush();
  std::istringstream lines(read(path));
  std::string first, second, rest;
  std::getline(lines, first);
  std::getline(lines, second);
  CHECK_THAT(first, Catch::Contains("\"step\":0") && Catch::Contains("\"dropped\":3") &&
                        Catch::Contains("\"mean_score\":null") && Catch::Contains("\"drift\":0.75") &&
                        !Catch::Contains("passed_over"));
  CHECK_THAT(second, Catch::Contains("\"step\":1") && Catch::Contains("\"dropped\":0"));
  CHECK_FALSE(std::getline(lines, rest));
}

TEST_CASE("a resumed run's metrics begin where the checkpoint was") {
  const Scratch scratch;
  const RunFolder folder(scratch.file("run"));
  write(folder.file("metrics.jsonl"),
        "{\"kind\":\"validation\",\"step\":0}\n{\"kind\":\"step\",\"step\":3}\n{\"kind\":\"step\",\"step\":4}\n"
        "{\"kind\":\"validation\",\"step\":4}\n{\"kind\":\"st");
  folder.trim_metrics(4);
  CHECK(read(folder.file("metrics.jsonl")) == "{\"kind\":\"validation\",\"step\":0}\n{\"kind\":\"step\",\"step\":3}\n");
}

TEST_CASE("validation timesteps lie one in each part and differ between rows") {
  std::set<int64_t> seen;
  for (int64_t row = 0; row < 50; ++row) {
    for (int64_t draw = 0; draw < 4; ++draw) {
      const int64_t t = stratified_timestep(row, draw, 4, 1000);
      CHECK(t / 250 == draw);
      seen.insert(t);
    }
  }
  CHECK(seen.size() > 150);
}
