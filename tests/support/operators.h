#pragma once
// Which of ATen's operators some code calls.

#include <ATen/record_function.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>

namespace toy {

/// Names of the operators that `work` calls on this thread.
inline std::set<std::string> operators_of(const std::function<void()>& work) {
  static std::mutex mutex;
  static std::set<std::string> used;
  used.clear();
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& f) -> std::unique_ptr<at::ObserverContext> {
        const std::lock_guard lock(mutex);
        used.insert(f.name());
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  work();
  at::removeCallback(handle);
  return used;
}

/// Operators whose result the host has to wait for on a GPU.
inline const std::set<std::string> kWaiting{"aten::item",       "aten::_local_scalar_dense", "aten::nonzero",
                                            "aten::is_nonzero", "aten::masked_select",       "aten::unique_dim",
                                            "aten::_unique2"};

/// Those of `used` that make the host wait, for a message.
inline std::string waiting_among(const std::set<std::string>& used) {
  std::string names;
  for (const auto& name : kWaiting) names += used.count(name) > 0 ? name + " " : "";
  return names;
}

}  // namespace toy
