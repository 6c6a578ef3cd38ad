// memsieve-audit: what a finished model has memorised. The command line.
#include <audit/commands/command.h>
#include <memsieve/error.h>
#include <runtime/run_program.h>

#include <algorithm>
#include <iostream>
#include <optional>

namespace {

using namespace memsieve;
using namespace memsieve::audit;

constexpr const char* kVersion = "memsieve-audit " MEMSIEVE_VERSION;

void print_help() {
  std::cout << "memsieve-audit COMMAND --model FOLDER --prompts FILE --out FOLDER [options]\n\nCommands:\n";
  for (const Command& command : commands())
    std::cout << "  " << command.name << std::string(16 - std::min<size_t>(15, command.name.size()), ' ')
              << command.summary << "\n";
  std::cout << "\nmemsieve-audit COMMAND --help tells a command's options.\n";
}

class AuditProgram : public Program {
 public:
  bool parse(int argc, char** argv) override {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (!words.empty() && words.front() == "--version") {
      std::cout << kVersion << "\n";
      return false;
    }
    if (words.empty()) throw ConfigError("no command; see memsieve-audit --help");
    if (words.front() == "--help") {
      print_help();
      return false;
    }
    command_ = &find_command(words.front());
    words_.assign(words.begin() + 1, words.end());
    if (!Options::asks_help(words_)) return true;
    std::cout << "memsieve-audit " << command_->name << ": " << command_->summary << "\n\n"
              << options_of(*command_).help();
    return false;
  }

  std::optional<ProgramOptions> configure(const Launch& launch) override {
    config_ = audit_config(command_->name, options_of(*command_).settings(words_, command_->name), command_->asks);
    ProgramOptions options{.device = config_.device};
    options.group.rendezvous_seconds = default_rendezvous_seconds(launch);
    return options;
  }

  ExitCode run(Group& group) override { return command_->run(config_, group); }
  std::string work() const override { return "audit"; }

 private:
  const Command* command_ = nullptr;
  std::vector<std::string> words_;
  AuditConfig config_;
};

}  // namespace

int main(int argc, char** argv) {
  AuditProgram program;
  return run_program(program, argc, argv);
}
