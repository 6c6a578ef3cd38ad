#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>
#include <diffusion/models/lora/lora.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace memsieve::diffusion {

namespace {

struct Layer {
  std::string name;
  Adaptable* layer;
};

std::vector<Layer> adaptable_layers(torch::nn::Module& model) {
  std::vector<Layer> layers;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    if (auto* layer = dynamic_cast<Adaptable*>(item.value().get())) layers.push_back({item.key(), layer});
  }
  return layers;
}

bool ends_in(const std::string& name, const std::string& target) {
  if (name == target) return true;
  const std::string tail = "." + target;
  return name.size() > tail.size() && name.compare(name.size() - tail.size(), tail.size(), tail) == 0;
}

// "a.to_out.0" -> "to_out.0", "a.proj_in" -> "proj_in": a number alone says nothing.
std::string ending(const std::string& name) {
  size_t dot = name.rfind('.');
  if (dot == std::string::npos) return name;
  if (std::isdigit(static_cast<unsigned char>(name[dot + 1])) != 0 && dot > 0) dot = name.rfind('.', dot - 1);
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

std::string endings_of(const std::vector<Layer>& layers) {
  std::set<std::string> endings;
  for (const Layer& layer : layers) endings.insert(ending(layer.name));
  std::string text;
  for (const std::string& one : endings) text += (text.empty() ? "" : ", ") + one;
  return text;
}

std::string target_in(const std::string& where, const std::string& target) {
  return where + ".target_modules: '" + target + "'";
}

void check(const LoraConfig& config, const std::vector<Layer>& layers, const std::string& where) {
  if (config.rank < 1) throw ConfigError(where + ".rank: is " + std::to_string(config.rank) + "; must be 1 or more");
  if (!std::isfinite(config.alpha) || config.alpha <= 0)
    throw ConfigError(where + ".alpha: is " + std::to_string(config.alpha) + "; must be above 0");
  if (config.target_modules.empty())
    throw ConfigError(where + ".target_modules: is empty; name layers, for example to_q");
  for (const std::string& target : config.target_modules) {
    if (std::none_of(layers.begin(), layers.end(), [&](const Layer& l) { return ends_in(l.name, target); }))
      throw ConfigError(target_in(where, target) + " is the ending of no layer's name; there are " +
                        endings_of(layers));
  }
}

at::Tensor in_convolution_order(const at::Tensor& weight) {
  if (weight.dim() != 4) return weight;
  // Gradients come in these strides, those of 1x1 kernels too.
  return at::empty(weight.sizes(), weight.options(), at::MemoryFormat::ChannelsLast).copy_(weight);
}

std::shared_ptr<LowRank> make_adapter(const at::Tensor& weight, const LoraConfig& config, at::Generator& generator) {
  std::vector<int64_t> a_shape = weight.sizes().vec(), b_shape(a_shape.size(), 1);
  a_shape[0] = b_shape[1] = config.rank;
  b_shape[0] = weight.size(0);
  at::Tensor a = at::empty(a_shape, at::kFloat);
  const double inputs = static_cast<double>(weight.numel()) / static_cast<double>(weight.size(0));
  if (config.gaussian)
    a.normal_(0, 1 / static_cast<double>(config.rank), generator);
  else
    a.uniform_(-1 / std::sqrt(inputs), 1 / std::sqrt(inputs), generator);
  const auto ready = [&](const at::Tensor& t) {
    return in_convolution_order(t.to(weight.device())).requires_grad_(true);
  };
  auto adapter = std::make_shared<LowRank>();
  adapter->a = ready(a);
  adapter->b = ready(at::zeros(b_shape, at::kFloat));
  adapter->scale = config.alpha / static_cast<double>(config.rank);
  return adapter;
}

}  // namespace

Lora::Lora(torch::nn::Module& model, const LoraConfig& config, uint64_t seed, const std::string& where,
           const std::string& component)
    : config_(config), component_(component) {
  const auto layers = adaptable_layers(model);
  check(config_, layers, where);
  at::NoGradGuard no_grad;
  for (auto& p : model.parameters()) p.requires_grad_(false);
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const Layer& layer : layers) {
    const auto& targets = config_.target_modules;
    if (std::none_of(targets.begin(), targets.end(),
                     [&](const std::string& target) { return ends_in(layer.name, target); }))
      continue;
    entries_.push_back({layer.name, make_adapter(layer.layer->adapted_weight(), config_, generator)});
    layer.layer->adapt(entries_.back().adapter);
  }
}

std::vector<std::pair<std::string, at::Tensor>> Lora::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (const Entry& entry : entries_) {
    all.emplace_back(entry.layer + ".lora_A.weight", entry.adapter->a);
    all.emplace_back(entry.layer + ".lora_B.weight", entry.adapter->b);
  }
  return all;
}

void Lora::apply(bool on) {
  applied_ = on;
  for (const Entry& entry : entries_) entry.adapter->on = on;
}

void Lora::merge(torch::nn::Module& model) const {
  const at::NoGradGuard no_grad;
  const auto modules = model.named_modules("", /*include_self=*/false);
  for (const Entry& entry : entries_) {
    auto& layer = dynamic_cast<Adaptable&>(*modules[entry.layer]);
    const LowRank& adapter = *entry.adapter;
    at::Tensor weight = layer.adapted_weight();
    const at::Tensor product = at::matmul(adapter.b.flatten(1), adapter.a.flatten(1)).reshape(weight.sizes());
    weight.add_(product, adapter.scale);
    layer.adapt(nullptr);
  }
}

std::string fingerprint(torch::nn::Module& model) {
  uint64_t hash = detail::kFnv1aStart;
  const auto add = [&](const void* data, size_t bytes) { hash = detail::fnv1a(data, bytes, hash); };
  at::NoGradGuard no_grad;
  for (const auto& item : model.named_parameters()) {
    add(item.key().data(), item.key().size());
    const at::Tensor bits = item->detach().to(at::kFloat).contiguous().view(-1).view(at::kInt);
    const int64_t sum = bits.sum(at::kLong).item<int64_t>(), stride = std::max<int64_t>(1, bits.numel() / 64);
    const at::Tensor some = bits.slice(0, 0, bits.numel(), stride).cpu().contiguous();
    add(item->sizes().data(), item->sizes().size() * sizeof(int64_t));
    add(&sum, sizeof sum);
    add(some.const_data_ptr(), some.nbytes());
  }
  return detail::in_hex(hash);
}

}  // namespace memsieve::diffusion
