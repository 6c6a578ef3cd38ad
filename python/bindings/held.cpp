// Python objects that C++ holds: predictions on request, tensors in place of them.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "bindings.h"

namespace memsieve::python {

Held::Held(py::object object)
    : object_(new py::object(std::move(object)), [](py::object* held) {
        if (!Py_IsInitialized()) return;  // the interpreter has taken it down already
        const py::gil_scoped_acquire gil;
        delete held;
      }) {}

bool is_tensor(const py::handle& object) {
  return THPVariable_Check(object.ptr());
}

at::Tensor tensor_of(const py::handle& object, const char* what) {
  if (object.is_none()) return {};
  if (is_tensor(object)) return object.cast<at::Tensor>();
  try {
    return py::module_::import("torch").attr("as_tensor")(object).cast<at::Tensor>();
  } catch (const py::error_already_set&) {
    throw DataError(std::string("batch: ") + what + " is a " + Py_TYPE(object.ptr())->tp_name +
                    ", which torch.as_tensor does not take; pass a tensor");
  }
}

namespace {

std::string rows_of(const at::Tensor& tensor) {
  return (tensor.dim() == 0 ? "no" : std::to_string(tensor.size(0))) + " rows on " + tensor.device().str();
}

}  // namespace

Counterfactual counterfactual_of(const py::object& source, const std::string& name, const at::Tensor& prediction) {
  if (is_tensor(source)) {
    at::Tensor all = source.cast<at::Tensor>().detach();
    // A prediction that is none is told of by the sieve itself.
    if (prediction.defined() && prediction.dim() > 0 && rows_of(all) != rows_of(prediction)) {
      throw DataError("batch: '" + name + "' has " + rows_of(all) + ", but prediction has " + rows_of(prediction) +
                      "; pass a tensor like prediction");
    }
    return [all = std::move(all)](const at::Tensor& rows) { return all.index_select(0, rows); };
  }
  if (PyCallable_Check(source.ptr()) == 0) {
    throw DataError("batch: '" + name + "' is a " + Py_TYPE(source.ptr())->tp_name +
                    "; pass a tensor like prediction, or a callable that takes row numbers [k] and returns their "
                    "predictions [k, C, ...]");
  }
  return [held = Held(source), name](const at::Tensor& rows) {
    const py::gil_scoped_acquire gil;
    const py::object made = held.get()(rows);
    if (!is_tensor(made)) {
      throw DataError("batch: the callable for '" + name + "' returned a " + Py_TYPE(made.ptr())->tp_name +
                      ", not a tensor [k, C, ...]");
    }
    return made.cast<at::Tensor>();
  };
}

}  // namespace memsieve::python
