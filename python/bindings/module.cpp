// The module memsieve._core: the library's classes for python/memsieve.
#include <H5public.h>
#include <torch/version.h>

#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  using namespace memsieve::python;
  module.doc() = "The C++ library memsieve; use it through the package memsieve.";
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  module.attr("hdf5_version") = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
  module.attr("torch_version") = TORCH_VERSION;
  module.attr("cxx11_abi") = _GLIBCXX_USE_CXX11_ABI == 1;
  module.attr("flag_lag") = memsieve::kFlagLag;
  bind_errors(module);
  bind_values(module);
  bind_filters(module);
  bind_sieve(module);
}
