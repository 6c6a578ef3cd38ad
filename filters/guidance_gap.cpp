// For guidance-distilled models, which have no empty caption to compare with: the distance between the predictions at
// two embedded guidance scales stands for the magnitude of Wen et al. (ICLR 2024, section 3.1). The loop supplies the
// prediction at the other scale as Batch::counterfactuals["guidance"].
#include "filters.h"
#include "signal_filter.h"

namespace memsieve {

FilterEntry guidance_gap_filter() {
  return signal_filter("guidance_gap",
                       "Distance between the predictions at two embedded guidance scales; large = memorised.");
}

}  // namespace memsieve
