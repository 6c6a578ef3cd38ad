#pragma once
// Schemas: an option's name, documentation, type, default and range stand together. They drive YAML validation, `--set
// a.b=c`, `--print-config` and the generated configuration reference.

#include <memsieve/export.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace memsieve {

class Settings;

/// A value as resolved from YAML: exactly the types that an option can have.
using Value = std::variant<bool, int64_t, double, std::string, std::vector<double>, std::vector<std::string>>;

/// Describes the keys of one YAML mapping. Declaration order is the order of documentation and of `--print-config`.
class MEMSIEVE_API Schema {
 public:
  Schema();
  Schema(const Schema&);
  Schema(Schema&&) noexcept;
  Schema& operator=(const Schema&);
  Schema& operator=(Schema&&) noexcept;
  ~Schema();

  Schema& boolean(const std::string& name, bool initial, const std::string& doc);
  /// Values must lie in [low, high], bounds included.
  Schema& integer(const std::string& name, int64_t initial, int64_t low, int64_t high, const std::string& doc);
  Schema& real(const std::string& name, double initial, double low, double high, const std::string& doc);
  Schema& text(const std::string& name, const std::string& initial, const std::string& doc);
  /// One of `choices`.
  Schema& choice(const std::string& name, const std::string& initial, const std::vector<std::string>& choices,
                 const std::string& doc);
  Schema& reals(const std::string& name, const std::vector<double>& initial, const std::string& doc);
  Schema& integers(const std::string& name, const std::vector<int64_t>& initial, const std::string& doc);
  Schema& texts(const std::string& name, const std::vector<std::string>& initial, const std::string& doc);
  /// A nested mapping that always exists (its defaults apply when the YAML leaves it out).
  Schema& section(const std::string& name, const Schema& keys, const std::string& doc);
  /// A nested mapping that is there only if the YAML names it (`Settings::has`).
  Schema& optional_section(const std::string& name, const Schema& keys, const std::string& doc);

  /// The key or section declared last does not change what a run computes (where it writes, how often it reports), so a
  /// run that is resumed may set it anew: Keys::binding leaves it out.
  Schema& incidental();

  /// The reference as Markdown: one table per mapping, headed by its dotted path.
  std::string markdown(const std::string& path = "") const;

  /// private to the library
  struct Node;
  const Node& node() const { return *node_; }

 private:
  std::shared_ptr<Node> node_;
};

/// Which keys of a configuration are meant: all, or those that decide what a run computes (all but Schema::incidental).
enum class Keys { all, binding };

/// One key in which two configurations differ.
struct MEMSIEVE_API SettingsDifference {
  /// dotted, from the root of the file
  std::string path;
  /// values as YAML writes them, or why there is none, in brackets
  std::string now, then;
  /// "`a.b: 1` / `a.b: 2`": now / then.
  std::string line() const;
};

/// A validated configuration. Lookups take dotted paths below this mapping; a path that the schema does not declare is
/// a programming error and throws std::logic_error.
class MEMSIEVE_API Settings {
 public:
  bool boolean(const std::string& path) const;
  int64_t integer(const std::string& path) const;
  double real(const std::string& path) const;
  const std::string& text(const std::string& path) const;
  std::vector<double> reals(const std::string& path) const;
  std::vector<int64_t> integers(const std::string& path) const;
  std::vector<std::string> texts(const std::string& path) const;
  /// Whether an optional section is present (for other keys: whether the YAML or an override sets it).
  bool has(const std::string& path) const;
  /// The sub-mapping at `path`.
  Settings section(const std::string& path) const;
  /// Names of the optional sections present directly below this mapping, in the order of the YAML.
  std::vector<std::string> present() const;
  /// "file.yaml:5: a.b" for error messages about a key that is present; "file.yaml: a.b" otherwise.
  std::string where(const std::string& path) const;
  /// The configuration with defaults filled in, as YAML that resolves to the same settings (with Keys::binding: up to
  /// the keys that are left out).
  std::string yaml(Keys keys = Keys::all) const;

  /// The first key whose value differs from that of a configuration saved earlier, perhaps by another version: YAML
  /// text as yaml() gives it, complete or of the binding keys alone. Values are compared, not texts. A key that it
  /// lacks had its default; a key that today's schema lacks is a difference, unless it lies in a section that `keys`
  /// leaves out, and so is a value that today's schema refuses. Throws ConfigError, naming `source`, for what is no
  /// YAML mapping.
  std::optional<SettingsDifference> difference_from(const std::string& saved_yaml, const std::string& source,
                                                    Keys keys = Keys::binding) const;

  /// private to the library
  struct Tree;

 private:
  friend Settings resolve(const std::string&, const std::string&, const Schema&, const std::vector<std::string>&);
  std::shared_ptr<const Tree> tree_;
  /// dotted path of this mapping, with a trailing dot unless empty
  std::string prefix_;
  const Value& at(const std::string& path) const;
};

/// Parses and validates YAML text. `source` is the file name for messages; `overrides` are "a.b=c" and win over the
/// file. Throws ConfigError: `run.yaml:5: a.treshold: unknown key; did you mean 'threshold'?`
MEMSIEVE_API Settings resolve(const std::string& yaml_text, const std::string& source, const Schema& schema,
                              const std::vector<std::string>& overrides = {});

/// The same for a file. Throws ConfigError when it cannot be read.
MEMSIEVE_API Settings resolve_file(const std::string& path, const Schema& schema,
                                   const std::vector<std::string>& overrides = {});

/// The strings at `dotted` in YAML text, before any schema is known (plug-ins extend the schema, so they are
/// read first).
MEMSIEVE_API std::vector<std::string> peek_texts(const std::string& yaml_text, const std::string& source,
                                                 const std::string& dotted,
                                                 const std::vector<std::string>& overrides = {});

/// Reads a text file whole. Throws ConfigError naming it.
MEMSIEVE_API std::string read_text_file(const std::string& path);

}  // namespace memsieve
