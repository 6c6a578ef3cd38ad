#include <ATen/ATen.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/contact_sheet.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/run_evaluation.h>
#include <trainer/loop/sample_sheet.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <numeric>

namespace memsieve::trainer {

void RunEvaluation::run(int64_t step, bool end, const std::function<void()>& before_log) const {
  if (!is_due(step, end)) return;
  const WithEma averaged(parts_.ema);
  if (validates(step, end)) {
    const ValidationLoss v = validate(parts_.model, *parts_.validation, parts_.group, options_.validation);
    parts_.metrics.validation(step, v.loss, v.rows);
    char text[64];
    std::snprintf(text, sizeof text, "%.5f", v.loss);
    before_log();
    log_info("validation loss after " + std::to_string(step) + " steps: " + text);
  }
  if (draws(step, end)) draw(step);
}

void RunEvaluation::draw(int64_t step) const {
  const at::Tensor images =
      draw_samples(parts_.model, *parts_.prompts, *parts_.pictures, parts_.schedule, parts_.group, options_.draw);
  on_all_ranks(parts_.group, [&] {
    if (parts_.group.rank() != 0) return;
    const RunFolder& folder = parts_.folder;
    const std::string name = "samples/" + step_name(step);
    std::error_code error;
    std::filesystem::create_directory(folder.file("samples"), error);
    write_samples(folder.file(name + ".h5"), images);
    write_captions();
    const SampleSheet sheet = sample_sheet(images);
    write_contact_sheet(folder.file(name + ".png"), sheet.images, {.margin = kSheetMargin, .zoom = sheet.zoom});
    parts_.metrics.samples(step, name + ".h5", name + ".png");
  });
}

/// samples/captions.txt: line p is the caption of the sheet's p-th prompt, left to right, then down.
void RunEvaluation::write_captions() const {
  std::vector<int64_t> all(static_cast<size_t>(parts_.prompts->size()));
  std::iota(all.begin(), all.end(), 0);
  std::string text;
  for (std::string caption : parts_.prompts->captions(all)) {
    std::replace_if(
        caption.begin(), caption.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    text += caption + "\n";
  }
  write_text_atomically(parts_.folder.file("samples/captions.txt"), text);
}

}  // namespace memsieve::trainer
