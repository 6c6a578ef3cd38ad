#include <memsieve/builtin.h>

#include "filters.h"

namespace memsieve {

FilterRegistry builtin_filters() {
  FilterRegistry registry;
  registry.add(magnitude_filter());
  registry.add(prediction_error_filter());
  registry.add(start_gap_filter());
  registry.add(caption_gain_filter());
  registry.add(guidance_gap_filter());
  registry.add(selective_backprop_filter());
  return registry;
}

}  // namespace memsieve
