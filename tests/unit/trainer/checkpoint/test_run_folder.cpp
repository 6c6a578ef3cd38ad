// The run folder and its checkpoints: never overwritten unasked, whole or refused.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/checkpoint/content_hash.h>
#include <trainer/checkpoint/run_folder.h>
#include <support/files.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace of_test_run_folder {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace memsieve::testing;
namespace fs = std::filesystem;

namespace {

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path) << text;
}

CheckpointParts some_parts() {
  CheckpointParts parts;
  parts.weights_name = "unet";
  parts.save_weights = [](const std::string& folder) { write(folder + "/config.json", "{}"); };
  parts.optimizer = {{"updates", at::zeros({3})}};
  return parts;
}

/// As an older version wrote it: without CRC-32.
void remove_hashes(const std::string& folder) {
  std::string text = read_file(folder + "/state.json");
  const size_t from = text.find(",\n  \"crc32\"");
  text.replace(from, std::string::npos, "\n}\n");
  write(folder + "/state.json", text);
}

std::string refusal(const std::string& folder) {
  try {
    read_checkpoint_state(folder, Verify::contents);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a folder that holds a run is refused") {
  const TemporaryFolder scratch;
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
  const TemporaryFolder scratch;
  write(scratch.file("file"), "");
  CHECK_THROWS_AS(RunFolder(scratch.file("file")).make("here"), ConfigError);
  CHECK_THROWS_AS(RunFolder(scratch.file("file/run")).make("here"), ConfigError);
  CHECK_THROWS_WITH(RunFolder(scratch.file("file")).check("here"), Catch::Contains("is no folder"));
  CHECK_THROWS_WITH(RunFolder(scratch.file("file/deep/run")).check("here"), Catch::Contains("is no folder"));
  CHECK_NOTHROW(RunFolder(scratch.file("deep/run")).check("here"));
  CHECK_FALSE(fs::exists(scratch.file("deep")));
}

TEST_CASE("old checkpoints and leftovers go") {
  const TemporaryFolder scratch;
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
  const TemporaryFolder scratch;
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
  const TemporaryFolder scratch;
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
  const TemporaryFolder scratch;
  const RunFolder folder(scratch.file("run"));
  folder.make("here");
  folder.write_run_files({.run_id = "0123456789abcdef", .world_size = 1, .device = "cpu", .config_yaml = "seed: 1\n"});
  fs::create_directories(folder.file("checkpoints/step-000004.tmp"));
  folder.forget();
  CHECK_NOTHROW(folder.refuse_if_used("here"));
  CHECK_FALSE(fs::exists(folder.file("checkpoints")));
}

TEST_CASE("a checkpoint comes back; a torn one says which piece") {
  const TemporaryFolder scratch;
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
  const CheckpointState back = read_checkpoint_state(folder, Verify::contents);
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
  SECTION("an older version, which passed over no sample and knew no content") {
    remove_hashes(folder);
    flip_bits(folder + "/unet/config.json", 0, 1);
    std::string text = read_file(folder + "/state.json");
    text.erase(text.find("\"stream_position\""), std::string("\"stream_position\": 91,").size());
    write(folder + "/state.json", text);
    CHECK(read_checkpoint_state(folder, Verify::contents).stream_position == 7 * 8);
  }
  SECTION("a newer version") {
    std::string text = read_file(folder + "/state.json");
    text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
    write(folder + "/state.json", text);
    CHECK_THAT(refusal(folder), Contains("state.json: is of version 2") && Contains("up to 1"));
    // Nothing is wrong with it: an older one must not take its place.
    CHECK_THROWS_WITH(read_checkpoint_state(folder, Verify::sizes), !Contains("damaged"));
  }
  SECTION("no state") {
    fs::remove(folder + "/state.json");
    CHECK_THAT(refusal(folder), Contains("state.json"));
  }
  SECTION("a file in a folder's place") {
    fs::remove_all(folder + "/unet");
    write(folder + "/unet", "");
    CHECK_THROWS_AS(read_checkpoint_state(folder, Verify::sizes), DamagedCheckpoint);
  }
  SECTION("a state that would be waited for") {
    fs::remove(folder + "/state.json");
    REQUIRE(mkfifo((folder + "/state.json").c_str(), 0600) == 0);
    CHECK_THROWS_AS(read_checkpoint_state(folder, Verify::sizes), DamagedCheckpoint);
  }
  SECTION("no folder") {
    CHECK_THAT(refusal(folder + "x"), Contains("no such"));
  }
}

TEST_CASE("a byte that has changed in any file of a checkpoint is found out") {
  const TemporaryFolder scratch;
  const std::string folder = scratch.file("step-000007");
  write_checkpoint(folder, {}, some_parts());
  REQUIRE(refusal(folder).empty());
  int tried = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path();
    for (uintmax_t at = 0; at < fs::file_size(path); ++at, ++tried) {
      INFO(path << " at " << at);
      flip_bits(path, static_cast<std::streamoff>(at), 1);
      REQUIRE_THROWS_AS(read_checkpoint_state(folder, Verify::contents), DamagedCheckpoint);
      flip_bits(path, static_cast<std::streamoff>(at), 1);
    }
  }
  CHECK(tried > 500);
  CHECK(refusal(folder).empty());
  flip_bits(folder + "/optimizer.safetensors", 40, 1);
  CHECK_NOTHROW(read_checkpoint_state(folder, Verify::sizes));
  CHECK_THAT(refusal(folder), Catch::Contains("optimizer.safetensors: is damaged") && Catch::Contains("--resume-from"));
}

TEST_CASE("a file's hash is zlib's CRC-32, in however many pieces it is read") {
  const TemporaryFolder scratch;
  CHECK(text_hash("123456789") == "cbf43926");  // the check value of CRC-32/ISO-HDLC
  write(scratch.file("small"), "123456789");
  CHECK(content_hash(scratch.file("small")) == "cbf43926");
  write(scratch.file("empty"), "");
  CHECK(content_hash(scratch.file("empty")) == "00000000");
  std::string text((size_t{64} << 20) + 12345, 'a');
  for (size_t i = 0; i < text.size(); i += 1000) text[i] = static_cast<char>('a' + i % 26);
  write(scratch.file("large"), text);
  CHECK(content_hash(scratch.file("large")) == text_hash(text));
}

TEST_CASE("what lies beside checkpoints is none, and a folder that cannot be read is not an empty one") {
  const TemporaryFolder scratch;
  const RunFolder folder(scratch.file("run"));
  CHECK(folder.checkpoints().empty());
  for (const char* name : {"step-000005", "step-7", "step-000008.bak", "step-0000009", "step-", "step-99999999999999"})
    fs::create_directories(folder.file(std::string("checkpoints/") + name));
  write(folder.file("checkpoints/step-000006"), "no folder");
  fs::create_directory_symlink("nowhere", folder.file("checkpoints/step-000010"));
  CHECK(folder.checkpoints() == std::vector<int64_t>{5, 99999999999999});
  fs::remove_all(folder.file("checkpoints"));
  write(folder.file("checkpoints"), "no folder");
  CHECK_THROWS_AS(folder.checkpoints(), DataError);
}

TEST_CASE("a checkpoint that was being replaced comes back, and damaged ones stay") {
  const TemporaryFolder scratch;
  const RunFolder folder(scratch.file("run"));
  for (const char* name : {"step-000001.replaced", "step-000002.replaced", "step-000002", "step-000003"})
    write(folder.file(std::string("checkpoints/") + name + "/" + name), "");
  folder.put_back_replaced();
  CHECK(folder.checkpoints() == std::vector<int64_t>{1, 2, 3});
  CHECK(fs::exists(folder.checkpoint(2) + "/step-000002"));
  folder.set_aside_damaged({3});
  fs::create_directories(folder.checkpoint(3));
  folder.set_aside_damaged({3});
  folder.tidy();
  folder.rotate(1, 2);
  CHECK(folder.checkpoints() == std::vector<int64_t>{2});
  CHECK(fs::exists(folder.checkpoint(3) + ".damaged/step-000003"));
  CHECK(fs::exists(folder.checkpoint(3) + ".damaged-2"));
  CHECK_FALSE(fs::exists(folder.checkpoint(2) + ".replaced"));
}

TEST_CASE("a run's folder that is gone is not made again by its checkpoints") {
  const TemporaryFolder scratch;
  const RunFolder folder(scratch.file("run"));
  CHECK_THROWS_AS(write_checkpoint(folder.checkpoint(1), {}, some_parts()), DataError);
  CHECK_FALSE(fs::exists(folder.path()));
  folder.make("here");
  write_checkpoint(folder.checkpoint(1), {}, some_parts());
  CHECK(folder.checkpoints() == std::vector<int64_t>{1});
}

TEST_CASE("a checkpoint for which there is no space is named and leaves nothing") {
  const TemporaryFolder scratch;
  const std::string folder = scratch.file("step-000007");
  CheckpointParts parts = some_parts();
  parts.optimizer = {{"updates", at::zeros({100000})}};
  struct rlimit before {};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 4096;  // files above it fail as on a full disk
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string said;
  try {
    write_checkpoint(folder, {}, parts);
  } catch (const DataError& error) {
    said = error.what();
  }
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(said, Catch::Contains("step-000007") && Catch::Contains("optimizer.safetensors") &&
                       Catch::Contains(std::strerror(EFBIG)));
  CHECK(fs::is_empty(fs::path(folder).parent_path()));
}

TEST_CASE("a checkpoint that cannot be finished leaves the old one") {
  const TemporaryFolder scratch;
  const std::string folder = scratch.file("step-000007");
  CheckpointState state;
  write_checkpoint(folder, state, some_parts());
  CheckpointParts broken = some_parts();
  broken.save_weights = [](const std::string&) { throw DataError("disk full"); };
  state.step = 9;
  CHECK_THROWS_AS(write_checkpoint(folder, state, broken), DataError);
  CHECK(read_checkpoint_state(folder, Verify::contents).step == 0);
}

}  // namespace of_test_run_folder
