// Python objects that C++ holds: predictions on request, tensors in place of them.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "bindings.h"

namespace memsieve::python {

namespace {

/// Whether this thread holds the GIL; unlike PyGILState_Check() also right while the interpreter is taken down,
/// and after that.
bool has_gil() {
  PyThreadState* holder = py::detail::get_thread_state_unchecked();
  return holder != nullptr && holder == PyGILState_GetThisThreadState();
}

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

/// Lets go of the object. While the interpreter is taken down Python ends every other thread that asks for the GIL,
/// where it stands; in a destructor that would end the process. Such an object is left to the process's end.
void release(py::object* held) {
  if (has_gil()) {
    delete held;
  } else if (Py_IsInitialized() != 0 && !is_finalizing()) {
    const py::gil_scoped_acquire gil;
    delete held;
  }
}

}  // namespace

Held::Held(py::object object) : object_(new py::object(std::move(object)), release) {}

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
