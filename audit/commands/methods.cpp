#include <audit/commands/methods.h>
#include <memsieve/error.h>

#include <algorithm>
#include <sstream>

namespace memsieve::audit {

void add_method_options(Options& options) {
  options
      .texts(
          "methods", {"dynamic_guidance", "embedding"},
          "how to draw besides as it is: dynamic_guidance, embedding, random_tokens (prompts prepared with "
          "--random-tokens), attention, rephrased (prompts prepared with --rephrased); default: dynamic_guidance and "
          "embedding")
      .real("target", 1.5, 0, 1e9,
            "of embedding: the magnitude of one picture at the first step that is low enough. Published: about 1.5 for "
            "Stable Diffusion 1 (3 for four pictures together); it means nothing for a model of another size or that "
            "predicts v or flow: there take one from `detect` on negatives")
      .real("learning_rate", 0.05, 1e-9, 1e3, "of embedding")
      .integer("updates", 10, 0, 1 << 20, "of embedding, at most")
      .real("first_token_scale", 1.25, 0, 1e3, "of attention: factor of the first token's logits; MemBench takes 1.1")
      .real("rephrased_target", 1, 0, 1e9,
            "of rephrased: first magnitude of one picture up to which a wording is taken, and the prompt itself; 1, 3 "
            "and 5 are published for Stable Diffusion 1 and travel no better than `target`")
      .real("repulsion_from", 3, 0, 1e9, "of rephrased: magnitude above which it is drawn away from the prompt")
      .real("repulsion_full", 5, 0, 1e9, "of rephrased: magnitude from which the prompt plays no part any more")
      .real("copy_similarity", 0.8, -1, 1, "correlation with a known picture from which a drawing counts as a copy")
      .incidental();
}

namespace {

/// What the method 'rephrased' needs to be defined.
void require_repulsion(const AuditConfig& config) {
  const Settings& s = config.settings;
  const double from = s.real("repulsion_from"), full = s.real("repulsion_full");
  if (full <= from) {
    std::ostringstream why;
    why << s.where("repulsion_full") << ": is " << full << ", but must be above repulsion_from, " << from;
    throw ConfigError(why.str());
  }
  if (config.guidance <= 1)
    throw ConfigError(s.where("guidance_scale") +
                      ": the method 'rephrased' needs more than 1; raise it, or leave the "
                      "method out");
}

}  // namespace

std::vector<const Mitigation*> methods_of(const Settings& settings) {
  const auto asked = settings.texts("methods");
  std::vector<const Mitigation*> methods;
  std::string known;
  for (const Mitigation& method : mitigations()) {
    if (method.name != "none") known += (known.empty() ? "" : ", ") + method.name;
    if (method.name == "none" || std::count(asked.begin(), asked.end(), method.name) > 0) methods.push_back(&method);
  }
  for (const std::string& name : asked) {
    const auto has_name = [&](const Mitigation& method) { return method.name == name; };
    if (std::none_of(mitigations().begin(), mitigations().end(), has_name))
      throw ConfigError(settings.where("methods") + ": '" + name + "' is no method; known are: " + known);
  }
  return methods;
}

MitigationOptions mitigation_options(const AuditConfig& config) {
  const Settings& s = config.settings;
  const auto asked = s.texts("methods");
  if (std::count(asked.begin(), asked.end(), "rephrased") > 0) require_repulsion(config);
  return {.seed = config.seed,
          .target = s.real("target"),
          .learning_rate = s.real("learning_rate"),
          .updates = s.integer("updates"),
          .first_token_scale = s.real("first_token_scale"),
          .rephrased_target = s.real("rephrased_target"),
          .repulsion_from = s.real("repulsion_from"),
          .repulsion_full = s.real("repulsion_full")};
}

}  // namespace memsieve::audit
