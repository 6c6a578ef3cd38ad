// What the caption adds: ln L(x_t, t, null) - ln L(x_t, t, e). Zhai et al., "Membership Inference on Text-to-Image
// Diffusion Models via Conditional Likelihood Discrepancy" (CLiD), arXiv 2405.14800. It needs the prediction
// that the magnitude needs.
#include "filters.h"
#include "signal_filter.h"

namespace memsieve {

FilterEntry caption_gain_filter() {
  return signal_filter("caption_gain",
                       "How much better the row is predicted with its caption than with the empty one, as the "
                       "difference of the errors' logarithms; large = memorised.");
}

}  // namespace memsieve
