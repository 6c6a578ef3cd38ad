#pragma once
// Reads the config.json of a diffusers model key by key, so that nothing in it is overlooked.

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Keys whose feature is not built here, with the values that mean "not used".
using UnusedFeatures = std::map<std::string, std::vector<nlohmann::json>>;

/// Every read leaves `out` alone if the key is absent. A value of another type, and null for anything that is neither
/// optional nor a bool (Python takes None for false), is a ConfigError naming file, key and value.
class JsonReader {
 public:
  using Json = nlohmann::json;
  using Ints = std::vector<int64_t>;

  /// `where` stands for the file's name in errors; `class_name` is what _class_name must be, if it is given.
  JsonReader(const std::string& json_text, std::string where, const std::string& class_name);

  void read(const std::string& key, int64_t& out);
  void read(const std::string& key, std::optional<int64_t>& out);
  void read(const std::string& key, bool& out);
  void read(const std::string& key, double& out);
  void read(const std::string& key, std::optional<double>& out);
  void read(const std::string& key, std::string& out);
  void read(const std::string& key, std::optional<std::string>& out);
  void read(const std::string& key, std::vector<std::string>& out);
  void read(const std::string& key, Ints& out);
  /// A number for all levels, or a list with one for each.
  void read_levels(const std::string& key, Ints& out, int64_t levels, int64_t otherwise);
  /// null, a number, or [height, width].
  void read_size(const std::string& key, std::optional<Ints>& out);

  /// A key whose value does not matter here.
  void skip(const std::string& key) { seen_.insert(key); }

  /// Call last: ConfigError for a key that was not read, unless it is an unused feature at a value that switches it
  /// off, or a note of diffusers' own ("_diffusers_version").
  void reject_the_rest(const UnusedFeatures& unused) const;

 private:
  const Json* find(const std::string& key);
  int64_t integer(const std::string& key, const Json& value) const;

  Json object_;
  std::string where_;
  std::set<std::string> seen_;
};

/// Throws ConfigError: "where: key: value: why".
[[noreturn]] void fail_config(const std::string& where, const std::string& key, const nlohmann::json& value,
                              const std::string& why);

/// Levels of a model and layers of one of its blocks: far more than any has.
inline constexpr int64_t kMostLevels = 16, kMostLayers = 64;
/// Throws ConfigError if a model of at least so many parameters cannot be had: above 2^36, 256 GiB in float32. What
/// config.json asks for is refused before any of it is allocated.
void check_parameter_count(const std::string& where, double at_least);

}  // namespace memsieve::diffusion
