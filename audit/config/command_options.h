#pragma once
// A command's options: each is a key of the YAML file and a flag of the command line, `guidance_scale: 7.5` and
// `--guidance-scale 7.5`.

#include <memsieve/schema.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

class Options {
 public:
  /// As Schema's. On the command line it is a switch: `--ema` is `--ema true`.
  Options& boolean(const std::string& name, bool initial, const std::string& doc);
  Options& integer(const std::string& name, int64_t initial, int64_t low, int64_t high, const std::string& doc);
  Options& real(const std::string& name, double initial, double low, double high, const std::string& doc);
  Options& text(const std::string& name, const std::string& initial, const std::string& doc);
  Options& choice(const std::string& name, const std::string& initial, const std::vector<std::string>& choices,
                  const std::string& doc);
  /// The flag may be given several times.
  Options& texts(const std::string& name, const std::vector<std::string>& initial, const std::string& doc);
  /// The option declared last does not change what is measured: results may be continued with another value.
  Options& incidental();

  /// The flags with their documentation, for --help.
  std::string help() const;

  /// The settings of a command line without the program's name and the command: flags, --config FILE and --set a.b=c;
  /// flags win over the file. Throws ConfigError.
  Settings settings(const std::vector<std::string>& words, const std::string& command) const;
  /// Whether the words ask for --help.
  static bool asks_help(const std::vector<std::string>& words);

 private:
  enum class Kind { boolean, number, text, texts };
  struct Flag {
    std::string name, initial, doc;
    Kind kind;
  };
  Options& flag(const std::string& name, const std::string& initial, const std::string& doc, Kind kind);

  Schema schema_;
  std::vector<Flag> flags_;
};

}  // namespace memsieve::audit
