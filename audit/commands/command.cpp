#include <audit/commands/benchmark.h>
#include <audit/commands/canary.h>
#include <audit/commands/check_picture.h>
#include <audit/commands/command.h>
#include <audit/commands/detect.h>
#include <audit/commands/explain.h>
#include <audit/commands/mitigate.h>
#include <audit/commands/prune.h>
#include <audit/commands/unauthorised.h>
#include <memsieve/error.h>

namespace memsieve::audit {

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"detect", "which prompts are memorised: the magnitude per step, against negatives", add_detect_options, detect},
      {"explain", "which words make the model remember: the gradient of the magnitude by token", add_explain_options,
       explain},
      {"mitigate", "drawing so that memorised pictures do not come out, compared", add_mitigate_options, mitigate},
      {"check-picture", "is a picture in the model: its error, and drawings with states optimised on it",
       add_check_picture_options, check_picture},
      {"prune", "zero the weights that memorised prompts need, and see whether the pictures come back",
       add_prune_options, prune},
      {"benchmark", "checkpoints and mitigations compared on trigger and general prompts, as MemBench does",
       add_benchmark_options, benchmark},
      {"canary", "whether it was trained on canaries: the exact test of the planted ones' ranks", add_canary_options,
       canary, Asks::predictions},
      {"unauthorised", "whether coated pictures were trained on: exact tests of what its drawings show",
       add_unauthorised_options, unauthorised, Asks::nothing},
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
  add_common_options(options, command.asks);
  command.add_options(options);
  return options;
}

}  // namespace memsieve::audit
