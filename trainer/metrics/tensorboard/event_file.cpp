#include <event.pb.h>
#include <memsieve/error.h>
#include <trainer/metrics/tensorboard/event_file.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/crc.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace memsieve::trainer {

namespace fs = std::filesystem;
using event_file::Event;

static_assert(std::endian::native == std::endian::little, "event files are little-endian");

namespace {

const std::string kPrefix = "events.out.tfevents.";

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Readers take the files in the order of their names: a file made within the same second as an earlier one must still
// come behind it.
int64_t time_of_new_file(const fs::path& folder) {
  auto time = static_cast<int64_t>(seconds_now());
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.rfind(kPrefix, 0) == 0)
      time = std::max<int64_t>(time, 1 + std::strtoll(name.c_str() + kPrefix.size(), nullptr, 10));
  }
  return time;
}

std::string host() {
  char name[256] = "";
  if (gethostname(name, sizeof name - 1) != 0 || name[0] == 0) return "localhost";
  return name;
}

// TFRecord's checksum: CRC-32C, rotated and shifted so that the checksum of data that hold checksums is sound.
uint32_t masked_crc(const void* data, size_t bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(data, bytes);
  const uint32_t value = crc.checksum();
  return std::rotr(value, 15) + 0xa282ead8U;
}

uint32_t big_endian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

}  // namespace

EventFile::EventFile(const std::string& folder, int64_t first_step) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder + ": cannot be made: " + error.message());
  char time[24];
  std::snprintf(time, sizeof time, "%010lld", static_cast<long long>(time_of_new_file(folder)));
  path_ = folder + "/" + kPrefix + time + "." + host() + "." + std::to_string(getpid()) + ".0";
  out_.open(path_, std::ios::binary);
  if (!out_) throw DataError(path_ + ": cannot be written; check permissions and free space");
  Event version;
  version.set_file_version("brain.Event:2");
  write(version, first_step);
  Event start;
  start.mutable_session_log()->set_status(event_file::SessionLog::START);
  write(start, first_step);
  flush();
}

void EventFile::write(Event& event, int64_t step) {
  event.set_wall_time(seconds_now());
  event.set_step(step);
  const std::string data = event.SerializeAsString();
  const uint64_t length = data.size();
  const uint32_t length_crc = masked_crc(&length, sizeof length), data_crc = masked_crc(data.data(), length);
  out_.write(reinterpret_cast<const char*>(&length), sizeof length);
  out_.write(reinterpret_cast<const char*>(&length_crc), sizeof length_crc);
  out_.write(data.data(), static_cast<std::streamsize>(length));
  out_.write(reinterpret_cast<const char*>(&data_crc), sizeof data_crc);
}

void EventFile::scalars(int64_t step, const std::vector<std::pair<std::string, double>>& tagged) {
  Event event;
  for (const auto& [tag, number] : tagged) {
    auto* value = event.mutable_summary()->add_value();
    value->set_tag(tag);
    value->set_simple_value(static_cast<float>(number));
  }
  write(event, step);
}

void EventFile::histogram(int64_t step, const std::string& tag, const std::vector<float>& values) {
  if (values.empty()) return;
  constexpr int kBuckets = 30;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double low = *least, high = *most, width = (high - low) / kBuckets;
  std::vector<double> counts(width > 0 ? kBuckets : 1);
  Event event;
  auto* value = event.mutable_summary()->add_value();
  value->set_tag(tag);
  auto* histogram = value->mutable_histo();
  double sum = 0, squares = 0;
  for (const double x : values) {
    sum += x;
    squares += x * x;
    const auto last = static_cast<double>(counts.size() - 1);
    ++counts[width > 0 ? static_cast<size_t>(std::clamp((x - low) / width, 0.0, last)) : 0];
  }
  histogram->set_min(low);
  histogram->set_max(high);
  histogram->set_num(static_cast<double>(values.size()));
  histogram->set_sum(sum);
  histogram->set_sum_squares(squares);
  for (size_t i = 0; i < counts.size(); ++i) {
    histogram->add_bucket_limit(i + 1 < counts.size() ? low + width * static_cast<double>(i + 1) : high);
    histogram->add_bucket(counts[i]);
  }
  write(event, step);
}

void EventFile::picture(int64_t step, const std::string& tag, const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  std::string bytes = content.str();
  if (bytes.size() < 24 || bytes.compare(1, 3, "PNG") != 0) throw DataError(path + ": is no PNG file");
  Event event;
  auto* value = event.mutable_summary()->add_value();
  value->set_tag(tag);
  auto* image = value->mutable_image();
  image->set_width(static_cast<int32_t>(big_endian(bytes, 16)));  // in the first chunk, IHDR
  image->set_height(static_cast<int32_t>(big_endian(bytes, 20)));
  image->set_colorspace(3);
  image->set_encoded_image_string(std::move(bytes));
  write(event, step);
}

void EventFile::flush() {
  out_.flush();
  if (!out_) throw DataError(path_ + ": cannot be written any more; is the disk full?");
}

}  // namespace memsieve::trainer
