#include <c10/util/Exception.h>
#include <memsieve/error.h>

namespace memsieve {

std::string one_line(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = torch != nullptr ? torch->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

std::string one_line(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    return one_line(known);
  } catch (...) {
    return "unknown exception";
  }
}

}  // namespace memsieve
