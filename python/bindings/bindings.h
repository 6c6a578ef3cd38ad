#pragma once
// What the files of the Python module share. Python sees the library's classes; what is Python's own (which optimiser,
// which group, which file) is done in python/memsieve.

#include <memsieve/memsieve.h>
#include <torch/csrc/utils/pybind.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>

namespace memsieve::python {

/// A Python object that C++ may copy and drop without holding the GIL.
class Held {
 public:
  explicit Held(py::object object);
  /// Only with the GIL.
  py::handle get() const { return *object_; }

 private:
  std::shared_ptr<py::object> object_;
};

bool is_tensor(const py::handle& object);

/// A tensor, or an undefined one for None. Throws DataError naming `what` for anything else, but for numpy arrays and
/// sequences of numbers, which torch.as_tensor takes.
at::Tensor tensor_of(const py::handle& object, const char* what);

/// A prediction on request, from a callable (run with the GIL, without gradient, its own exceptions passed through) or
/// from a tensor that has all rows. Throws DataError for anything else, and for a tensor that has not the rows or the
/// device of `prediction`, which may be undefined.
Counterfactual counterfactual_of(const py::object& source, const std::string& name, const at::Tensor& prediction);

/// Adds filters written in Python to `registry`: of each (name, doc, options, signals, timestep_min, function).
void add_filters(FilterRegistry& registry, const py::list& filters);

/// Ranks of a torch.distributed ProcessGroup, through its back end for `device`; None = one rank. Throws ConfigError.
std::shared_ptr<Communicator> communicator_of(const py::object& group, at::Device device);

void bind_errors(py::module_& module);
void bind_values(py::module_& module);
void bind_filters(py::module_& module);
void bind_sieve(py::module_& module);

}  // namespace memsieve::python
