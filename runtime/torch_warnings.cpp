#include <c10/util/Exception.h>
#include <runtime/log.h>
#include <runtime/torch_warnings.h>

namespace memsieve::runtime {

namespace {

class ToLog final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    const std::string text = warning.msg().substr(0, warning.msg().find('\n'));
    if (text.rfind("Grad strides do not match bucket view strides", 0) != 0) log_warning("torch: " + text);
  }
};

}  // namespace

void route_torch_warnings() {
  static ToLog handler;
  c10::WarningUtils::set_warning_handler(&handler);
}

}  // namespace memsieve::runtime
