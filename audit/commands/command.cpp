#include <audit/commands/command.h>
#include <audit/commands/detect.h>
#include <audit/commands/explain.h>
#include <audit/commands/mitigate.h>
#include <memsieve/error.h>

namespace memsieve::audit {

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"detect", "which prompts are memorised: the magnitude per step, against negatives", add_detect_options, detect},
      {"explain", "which words make the model remember: the gradient of the magnitude by token", add_explain_options,
       explain},
      {"mitigate", "drawing so that memorised pictures do not come out, compared", add_mitigate_options, mitigate},
  };
  return table;
}

const Command& find_command(const std::string& name) {
  std::string known;
  for (const Command& command : commands()) {
    if (command.name == name) return command;
    known += (known.empty() ? "" : ", ") + command.name;
  }
  throw ConfigError("'" + name + "' is no command of memsieve-audit; known are: " + known);
}

Options options_of(const Command& command) {
  Options options;
  add_common_options(options);
  command.add_options(options);
  return options;
}

}  // namespace memsieve::audit
