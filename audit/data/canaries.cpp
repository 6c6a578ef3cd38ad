#include <audit/data/canaries.h>
#include <diffusion/io/hdf5_file.h>
#include <diffusion/io/json_text.h>
#include <memsieve/error.h>
#include <memsieve/schema.h>

#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

namespace memsieve::audit {

namespace {

constexpr const char* kForm = "memsieve-canaries";

nlohmann::json manifest_of(const std::string& path) {
  nlohmann::json manifest = json_object(read_text_file(path));
  if (manifest.is_null() || manifest.value("format", nlohmann::json()) != kForm)
    throw DataError(path + ": is no manifest of canaries; name the one that `memsieve canaries` wrote");
  if (manifest.value("version", nlohmann::json()) != 1)
    throw DataError(path + ": was written by another version of `memsieve canaries`; use that one's memsieve-audit");
  return manifest;
}

/// The row of each name; names that occur twice have row -1.
std::map<std::string, int64_t> rows_by_name(const std::string& path) {
  const Hdf5File file(path);
  if (!file.has("/file_name_offsets") && !file.has("/file_name"))
    throw DataError(path +
                    ": has no /file_name, by which canaries are found; make it with `memsieve prepare` or "
                    "`memsieve canaries`");
  const Hdf5Strings names = file.strings("/file_name");
  std::vector<int64_t> ids(static_cast<size_t>(names.size()));
  std::iota(ids.begin(), ids.end(), int64_t{0});
  const auto texts = names.read_rows(ids);
  file.require_unchanged();
  std::map<std::string, int64_t> rows;
  for (size_t row = 0; row < texts.size(); ++row) {
    const auto [at, added] = rows.emplace(texts[row], static_cast<int64_t>(row));
    if (!added) at->second = -1;
  }
  return rows;
}

}  // namespace

std::vector<Canary> read_canaries(const std::string& manifest, const std::string& data) {
  const nlohmann::json content = manifest_of(manifest);
  const auto rows = rows_by_name(data);
  std::vector<Canary> canaries;
  try {
    for (const nlohmann::json& entry : content.at("canaries")) {
      Canary& canary = canaries.emplace_back();
      canary.planted = entry.at("planted").get<int64_t>();
      for (const auto& name : entry.at("files").get<std::vector<std::string>>()) {
        const auto found = rows.find(name);
        if (found == rows.end() || found->second < 0)
          throw DataError(data + ": holds variant " + name + " of canary " + std::to_string(canaries.size() - 1) +
                          (found == rows.end() ? " not at all" : " more than once") +
                          "; name the data set of all variants, made with --held-out 0 --validation 0");
        canary.rows.push_back(found->second);
      }
      if (canary.planted < 0 || canary.planted >= static_cast<int64_t>(canary.rows.size()))
        throw DataError(manifest + ": canary " + std::to_string(canaries.size() - 1) + " has no variant " +
                        std::to_string(canary.planted) + "; it is damaged");
    }
  } catch (const nlohmann::json::exception& error) {
    throw DataError(manifest + ": is damaged (" + one_line(error) + ")");
  }
  if (canaries.empty()) throw DataError(manifest + ": holds no canary");
  return canaries;
}

}  // namespace memsieve::audit
