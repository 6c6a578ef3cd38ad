#pragma once
// Event files, which TensorBoard shows. Knows no torch: its headers carry another protobuf.

#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::trainer::event_file {
class Event;
}

namespace memsieve::trainer {

/// One event file of a run. A process that is killed leaves a file that can be read up to the last flush. Everything
/// throws DataError if the file cannot be written.
class EventFile {
 public:
  /// Makes `folder` and a new file in it whose name sorts behind those there. Readers forget what earlier files say of
  /// `first_step` and later steps: a resumed run writes those anew.
  EventFile(const std::string& folder, int64_t first_step);

  void scalars(int64_t step, const std::vector<std::pair<std::string, double>>& tagged);
  /// 30 buckets of equal width; nothing is written for no values. Values must be finite.
  void histogram(int64_t step, const std::string& tag, const std::vector<float>& values);
  /// `path`: an RGB PNG file.
  void picture(int64_t step, const std::string& tag, const std::string& path);
  void flush();

 private:
  void write(event_file::Event& event, int64_t step);

  std::string path_;
  std::ofstream out_;
};

}  // namespace memsieve::trainer
