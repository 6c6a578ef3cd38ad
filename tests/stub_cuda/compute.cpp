// Beside runtime.cpp: torch's CPU kernels compute what the GPU's would, operator by operator, so that a run "on a GPU"
// gives numbers that can be compared with a run on the CPU. What only handles memory stays torch's own for CUDA.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/native/CPUFallback.h>
#include <c10/util/Exception.h>

#include <set>
#include <string>
#include <vector>

namespace {

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

/// The same memory as a tensor on the CPU.
at::Tensor on_host(const at::Tensor& t) {
  if (t.is_cpu()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

/// torch's own takes a kernel wherever the strides differ.
at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool) {
  if (to.numel() > 0) on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return to.copy_(from);
}

bool handles_memory(const std::string& name) {
  static const std::set<std::string> names{"aten::empty",
                                           "aten::empty_strided",
                                           "aten::as_strided",
                                           "aten::view",
                                           "aten::_reshape_alias",
                                           "aten::resize_",
                                           "aten::set_",
                                           "aten::unfold",
                                           "aten::_local_scalar_dense",
                                           "aten::record_stream",
                                           "aten::is_pinned",
                                           "aten::_pin_memory",
                                           "aten::is_set_to",
                                           "aten::view_as_real",
                                           "aten::view_as_complex",
                                           "aten::_copy_from",
                                           "aten::_fused_sdp_choice",
                                           "aten::_record_stream",
                                           "aten::_efficientzerotensor",
                                           "aten::_copy_from_and_resize"};
  return names.count(name) > 0;
}

std::vector<c10::RegistrationHandleRAII>& overrides() {
  static auto* all = new std::vector<c10::RegistrationHandleRAII>;  // in force until the process ends
  return *all;
}

/// torch warns of a kernel that is registered twice.
struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

__attribute__((constructor)) void override_all() {
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNamesForDispatchKey(c10::DispatchKey::CUDA)) {
    if (name.name.rfind("aten::", 0) != 0 || handles_memory(name.name)) continue;
    overrides().push_back(dispatcher.registerImpl(name, c10::DispatchKey::CUDA,
                                                  c10::KernelFunction::makeFromBoxedFunction<&on_cpu>(), std::nullopt,
                                                  nullptr, "stub_cuda"));
  }
  const auto add = [&](const char* name, c10::KernelFunction kernel) {
    overrides().push_back(dispatcher.registerImpl({name, ""}, c10::DispatchKey::CUDA, std::move(kernel), std::nullopt,
                                                  nullptr, "stub_cuda"));
  };
  add("aten::copy_", c10::KernelFunction::makeFromUnboxedRuntimeFunction(&copy));
  add("aten::_copy_from_and_resize", c10::KernelFunction::makeFromUnboxedRuntimeFunction(&copy_and_resize));
  // Attention as plain products: the fused kernels have other names on the CPU.
  at::globalContext().setSDPUseFlash(false);
  at::globalContext().setSDPUseMemEfficient(false);
  at::globalContext().setSDPUseCuDNN(false);
}

}  // namespace
