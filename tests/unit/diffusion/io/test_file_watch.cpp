// A file that a run reads must stay what it was: HDF5 reads zeros past the end of one that was cut off.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <diffusion/io/file_watch.h>
#include <fcntl.h>
#include <memsieve/error.h>
#include <support/hdf5_writer.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <functional>

namespace of_test_file_watch {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;
using memsieve::DataError;
namespace fs = std::filesystem;

namespace {

void age(const std::string& path) {
  fs::last_write_time(path, fs::last_write_time(path) - std::chrono::hours(1));
}

DatasetOptions uncached() {
  return {.cache_bytes = 0};
}

// What becomes of a set that is changed while it is open, held in memory or not.
void expect_refusal(const std::string& what, const std::function<void(const std::string&)>& change) {
  for (const auto& options : {DatasetOptions{}, uncached()}) {
    const TemporaryFolder folder;
    const std::string path = folder.file("set.h5");
    folder.file("other.h5");
    write_pictures(path, 40);
    age(path);
    const auto set = Dataset::open(path, options);
    REQUIRE_NOTHROW(set.load({0, 39}));
    change(path);
    INFO(what << ", cached: " << set.cached());
    REQUIRE_THROWS_AS(set.load({39}), DataError);
    REQUIRE_THROWS_WITH(set.load({39}), Contains(path + ": " + what) && !Contains("\n"));
    REQUIRE_THROWS_WITH(set.captions({3}), Contains(what));
    REQUIRE_THROWS_WITH(set.load_images({3}), Contains(what));
    REQUIRE_THROWS_WITH(set.require_unchanged(), Contains(what));
  }
}

}  // namespace

TEST_CASE("a data set that shrinks while it is open is refused, and never read as zeros") {
  expect_refusal("shrank from ", [](const auto& path) { fs::resize_file(path, fs::file_size(path) / 3); });
  expect_refusal("shrank from ", [](const auto& path) { fs::resize_file(path, 0); });
}

TEST_CASE("a data set that is written to while it is open is refused") {
  expect_refusal("was changed", [](const auto& path) { std::ofstream(path, std::ios::app) << "more"; });
  expect_refusal("was changed", [](const auto& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(path) / 2));
    file.put('x');
  });
}

TEST_CASE("a data set that another file takes the place of is refused") {
  expect_refusal("was replaced", [](const auto& path) {
    const std::string other = fs::path(path).parent_path() / "other.h5";
    fs::copy_file(path, other);
    fs::last_write_time(other, fs::last_write_time(path));
    fs::rename(other, path);
  });
}

TEST_CASE("a data set that is renamed, linked or deleted while it is open is still whole") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  write_pictures(path, 40);
  const auto set = Dataset::open(path, uncached());
  const auto before = set.load({39}).latents;
  fs::create_hard_link(path, folder.file("link.h5"));
  REQUIRE(at::equal(set.load({39}).latents, before));
  fs::rename(path, folder.file("moved.h5"));
  REQUIRE(at::equal(set.load({39}).latents, before));
  fs::remove(folder.file("moved.h5"));
  fs::remove(folder.file("link.h5"));
  REQUIRE(at::equal(set.load({39}).latents, before));
}

TEST_CASE("what is no regular file is refused before it is opened") {
  const TemporaryFolder folder;
  const auto refuse = [](const std::string& path, const std::string& kind) {
    REQUIRE_THROWS_WITH(FileWatch(path), Contains(path + ": is not a file but " + kind));
    REQUIRE_THROWS_WITH(Dataset::open(path), Contains(path + ": is not a file but " + kind));
  };
  REQUIRE(mkfifo(folder.file("pipe").c_str(), 0600) == 0);
  refuse(folder.file("pipe"), "a pipe");
  fs::create_symlink(folder.file("pipe"), folder.file("link"));
  refuse(folder.file("link"), "a pipe");
  refuse("/dev/null", "a device");
  refuse(folder.file(""), "a folder");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = folder.file("socket");
  REQUIRE(name.size() < sizeof address.sun_path);
  std::copy(name.begin(), name.end(), address.sun_path);
  const int descriptor = ::socket(AF_UNIX, SOCK_STREAM, 0);
  REQUIRE(::bind(descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  refuse(name, "a socket");
  ::close(descriptor);
}

}  // namespace of_test_file_watch
