// YAML against a schema with a key of every kind. Parts are set apart by form feeds: the configuration, one that was
// saved earlier, and overrides.
#include <memsieve/error.h>
#include <memsieve/schema.h>

#include <vector>

#include "fuzz_input.h"

using memsieve::ConfigError;
using memsieve::Keys;
using memsieve::Schema;
using memsieve::Settings;

namespace {

const Schema& schema() {
  static const Schema made = [] {
    Schema inner, magnitude, filters, root;
    inner.integer("rows", 4, 0, 1000, "a number").real("share", 0.5, 0, 1, "a share").incidental();
    magnitude.choice("scale", "log", {"log", "linear"}, "a choice").reals("levels", {0.5, 1}, "numbers");
    filters.optional_section("magnitude", magnitude, "named or not").optional_section("plain", Schema(), "no keys");
    root.boolean("on", true, "a switch")
        .integer("seed", 0, INT64_MIN, INT64_MAX, "any integer")
        .real("rate", 1e-4, -1e300, 1e300, "any number")
        .text("folder", "", "a text")
        .integers("sizes", {1, 2}, "integers")
        .texts("plugins", {}, "texts")
        .section("probe", inner, "always there")
        .section("filters", filters, "what is named");
    return root;
  }();
  return made;
}

std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts{""};
  for (const char c : text)
    if (c == '\f')
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

void check_round_trip(const Settings& settings) {
  const std::string yaml = settings.yaml();
  const Settings again = memsieve::resolve(yaml, "saved.yaml", schema());
  fuzz::require(again.yaml() == yaml, "what is printed resolves to itself:\n" + yaml + "\n----\n" + again.yaml());
  const auto difference = settings.difference_from(yaml, "saved.yaml", Keys::all);
  fuzz::require(!difference, "what is printed does not differ from what it was printed of: " +
                                 (difference ? difference->line() : ""));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> parts = parts_of(fuzz::text_of(data, size));
  const std::string text = parts[0], saved = parts.size() > 1 ? parts[1] : "";
  parts.erase(parts.begin(), parts.begin() + (parts.size() > 1 ? 2 : 1));
  fuzz::refused<ConfigError>([&] { memsieve::peek_texts(text, "run.yaml", "filters.magnitude.levels", parts); });
  Settings settings;
  if (fuzz::refused<ConfigError>([&] { settings = memsieve::resolve(text, "run.yaml", schema(), parts); })) return 0;
  check_round_trip(settings);
  settings.integers("sizes");
  for (const auto& name : settings.section("filters").present()) settings.where("filters." + name);
  fuzz::refused<ConfigError>([&] {
    const auto difference = settings.difference_from(saved, "saved.yaml");
    if (difference) fuzz::require_one_line(difference->line());
  });
  return 0;
}
