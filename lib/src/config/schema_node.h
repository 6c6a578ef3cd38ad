#pragma once
// What a Schema is made of. Private to the library.

#include <memsieve/schema.h>

#include <limits>

namespace memsieve {

enum class Kind { boolean, integer, real, text, choice, reals, integers, texts, section, optional_section };

const char* kind_name(Kind kind);

struct Option {
  std::string name;
  Kind kind;
  Value initial;
  std::string doc;
  double low = -std::numeric_limits<double>::max();
  double high = std::numeric_limits<double>::max();
  std::vector<std::string> choices = {};
  std::shared_ptr<Schema::Node> keys = nullptr;
  /// Schema::incidental
  bool incidental = false;
};

struct Schema::Node {
  std::vector<Option> options;
  const Option* find(const std::string& name) const {
    for (const auto& option : options) {
      if (option.name == name) return &option;
    }
    return nullptr;
  }
};

}  // namespace memsieve
