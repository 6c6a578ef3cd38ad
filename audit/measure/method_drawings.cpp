#include <ATen/ATen.h>
#include <audit/measure/method_drawings.h>
#include <audit/output/results.h>

namespace memsieve::audit {

namespace {

std::string unit_of(const Mitigation& method, const Drawing& drawing, const MethodDrawings& asked) {
  return unit_name(asked.unit_prefix + method.name + asked.unit_suffix, drawing);
}

}  // namespace

std::vector<std::string> units_of(const std::vector<Drawing>& batch, const MethodDrawings& asked) {
  std::vector<std::string> units;
  for (const Mitigation* method : asked.methods)
    for (const Drawing& drawing : batch) units.push_back(unit_of(*method, drawing, asked));
  return units;
}

std::vector<Json> draw_by_methods(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                  const MethodDrawings& asked, const AddMeasures& measures) {
  std::vector<Json> all;
  at::Tensor plain;
  for (const Mitigation* method : asked.methods) {
    const Mitigated made = method->draw(batch, prompts, model, asked.options);
    require_finite_rows(made.magnitude, "the magnitude", batch, prompts);
    const at::Tensor shown = (asked.decoder != nullptr ? asked.decoder->decode(made.drawn) : made.drawn).cpu();
    if (!plain.defined()) plain = shown;
    const auto to_plain = numbers(correlation(shown, plain));
    std::vector<Json> rows;
    for (size_t i = 0; i < batch.size(); ++i)
      rows.push_back({{"set", asked.set},
                      {"method", method->name},
                      {"prompt", batch[i].prompt},
                      {"picture_number", batch[i].picture},
                      {"magnitude", numbers(made.magnitude[static_cast<int64_t>(i)])},
                      {"similarity_to_plain", to_plain[i]}});
    measures(batch, shown, rows);
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!made.notes.empty()) rows[i].update(made.notes[i]);
      if (asked.decoder != nullptr) {
        rows[i]["picture"] = "pictures/" + unit_of(*method, batch[i], asked) + ".png";
        write_picture(asked.folder, rows[i]["picture"], shown[static_cast<int64_t>(i)]);
      }
      all.push_back(std::move(rows[i]));
    }
  }
  return all;
}

}  // namespace memsieve::audit
