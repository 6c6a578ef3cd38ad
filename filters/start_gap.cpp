// The starting model's error on the very same noised input: ln L_start(x_t, t, e) - ln L_now(x_t, t, e). The noise draw
// and the picture's own easiness cancel, so what is left is what training has taught about this picture.
// Reference-model membership inference (Carlini et al., arXiv 2112.03570; for diffusion models Matsumoto et al., arXiv
// 2302.03262, measure the loss without a reference), inside the training loop. Before the first update both models are
// one and every gap is 0 but for rounding: held-out pictures' zeros would make the unit of the first real scores tiny.
#include "filters.h"
#include "signal_filter.h"

namespace memsieve {

namespace {
constexpr double kRounding = 1e-4;
}

FilterEntry start_gap_filter() {
  return signal_filter("start_gap",
                       "How much better than the starting model the row is predicted, as the difference of the errors' "
                       "logarithms; large = memorised.",
                       kRounding);
}

}  // namespace memsieve
