#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <diffusion/models/common/adapter.h>
#include <diffusion/models/common/gradient_checkpointing.h>

#include <algorithm>
#include <array>

namespace memsieve::diffusion {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Body = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

struct AutocastState {
  struct Kind {
    c10::DeviceType device;
    bool on;
    at::ScalarType dtype;
  };
  std::array<Kind, 2> kinds;
  bool cache;

  static Kind kind(c10::DeviceType device) {
    return {device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)};
  }
  static AutocastState current() {
    return {{kind(c10::kCPU), kind(c10::kCUDA)}, at::autocast::is_autocast_cache_enabled()};
  }
  void apply() const {
    for (const Kind& k : kinds) {
      at::autocast::set_autocast_enabled(k.device, k.on);
      at::autocast::set_autocast_dtype(k.device, k.dtype);
    }
    at::autocast::set_autocast_cache_enabled(cache);
  }
};

// Autocast as given for a scope, with its cache off: a copy of a weight that was cast without gradient must not be
// found by a pass with gradient, nor one of the forward pass by the recomputation, whose thread may be another.
class AutocastScope {
 public:
  explicit AutocastScope(AutocastState state) : before_(AutocastState::current()) {
    state.cache = false;
    state.apply();
  }
  ~AutocastScope() { before_.apply(); }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  AutocastState before_;
};

struct Call : torch::CustomClassHolder {
  Body body;
  AutocastState autocast;
  std::size_t inputs = 0;  // how many of the saved tensors are inputs; the rest are parameters
};

variable_list first(at::TensorList tensors, std::size_t count) {
  return tensors.slice(0, count).vec();
}

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // The list must be a TensorList: torch does not see the tensors of a vector.
  static at::Tensor forward(AutogradContext* context, at::TensorList tensors, const c10::intrusive_ptr<Call>& call) {
    context->save_for_backward(tensors.vec());
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    const AutocastScope scope(call->autocast);
    return call->body(first(tensors, call->inputs));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    variable_list tensors = context->get_saved_variables();
    for (std::size_t i = 0; i < call->inputs; ++i)
      tensors[i] = tensors[i].detach().set_requires_grad(tensors[i].requires_grad());
    at::Tensor output;
    {
      const at::AutoGradMode grad(true);
      const AutocastScope scope(call->autocast);
      output = call->body(first(tensors, call->inputs));
    }
    variable_list wanted, out(tensors.size() + 1);  // one more for the call, which is no tensor
    for (const auto& tensor : tensors)
      if (tensor.requires_grad()) wanted.push_back(tensor);
    const variable_list found =
        torch::autograd::grad({output}, wanted, gradients, /*retain_graph=*/false, /*create_graph=*/false,
                              /*allow_unused=*/true);
    for (std::size_t i = 0, next = 0; i < tensors.size(); ++i)
      if (tensors[i].requires_grad()) out[i] = found[next++];
    return out;
  }
};

}  // namespace

at::Tensor checkpoint(Body f, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters) {
  variable_list tensors = inputs;
  tensors.insert(tensors.end(), parameters.begin(), parameters.end());
  const auto needs = [](const at::Tensor& tensor) { return tensor.requires_grad(); };
  if (!at::GradMode::is_enabled() || std::none_of(tensors.begin(), tensors.end(), needs)) return f(inputs);
  auto call = c10::make_intrusive<Call>();
  call->body = std::move(f);
  call->autocast = AutocastState::current();
  call->inputs = inputs.size();
  return Checkpoint::apply(at::TensorList(tensors), call);
}

at::Tensor CheckpointableImpl::run(Body f, const std::vector<at::Tensor>& inputs) {
  if (!on_) return f(inputs);
  std::vector<at::Tensor> leaves = parameters();
  for (const auto& module : modules())
    if (const auto* layer = dynamic_cast<const Adaptable*>(module.get()))
      if (const LowRank* adapter = layer->adapter()) {
        leaves.push_back(adapter->a);
        leaves.push_back(adapter->b);
      }
  // The graph may outlive the caller's hold on the module.
  return checkpoint([self = shared_from_this(), f = std::move(f)](const auto& in) { return f(in); }, inputs, leaves);
}

}  // namespace memsieve::diffusion
