#include <memsieve/builtin.h>

#include "filters.h"

namespace memsieve {

FilterRegistry builtin_filters() {
  FilterRegistry registry;
  registry.add(magnitude_filter());
  registry.add(prediction_error_filter());
  return registry;
}

}  // namespace memsieve
