// Filters written in Python. Slow: each call takes the GIL.
#include <limits>
#include <utility>
#include <vector>

#include "bindings.h"

namespace memsieve::python {

namespace {

class PythonFilter final : public Filter {
 public:
  PythonFilter(Needs needs, Held function, Held options)
      : needs_(std::move(needs)), function_(std::move(function)), options_(std::move(options)) {}
  Needs needs() const override { return needs_; }
  at::Tensor score(const SignalView& view) const override {
    const py::gil_scoped_acquire gil;
    const py::object made = function_.get()(view, **py::reinterpret_borrow<py::dict>(options_.get()));
    if (!is_tensor(made))
      throw DataError(std::string("returned a ") + Py_TYPE(made.ptr())->tp_name + ", not a tensor [B]");
    return made.cast<at::Tensor>();
  }

 private:
  Needs needs_;
  Held function_, options_;
};

/// An option by the type of its default.
void declare(Schema& schema, const std::string& name, const py::handle& initial) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::string doc = "an option of the Python function";
  if (py::isinstance<py::bool_>(initial))
    schema.boolean(name, initial.cast<bool>(), doc);
  else if (py::isinstance<py::int_>(initial))
    schema.integer(name, initial.cast<int64_t>(), std::numeric_limits<int64_t>::min(),
                   std::numeric_limits<int64_t>::max(), doc);
  else if (py::isinstance<py::float_>(initial))
    schema.real(name, initial.cast<double>(), -kInfinity, kInfinity, doc);
  else if (py::isinstance<py::str>(initial))
    schema.text(name, initial.cast<std::string>(), doc);
  else
    throw ConfigError("filter option " + name + ": its default is a " + Py_TYPE(initial.ptr())->tp_name +
                      "; use a bool, int, float or str");
}

py::object value_of(const Settings& settings, const std::string& name, const py::handle& initial) {
  if (py::isinstance<py::bool_>(initial)) return py::bool_(settings.boolean(name));
  if (py::isinstance<py::int_>(initial)) return py::int_(settings.integer(name));
  if (py::isinstance<py::float_>(initial)) return py::float_(settings.real(name));
  return py::str(settings.text(name));
}

FilterEntry entry_of(const py::tuple& filter) {
  const auto defaults = filter[2].cast<py::dict>();
  FilterEntry entry{filter[0].cast<std::string>(), filter[1].cast<std::string>(), {}, {}};
  std::vector<std::string> names;
  for (const auto& [name, initial] : defaults) declare(entry.options, name.cast<std::string>(), initial);
  entry.make = [needs = Needs{filter[3].cast<std::vector<std::string>>(), filter[4].cast<double>()},
                function = Held(filter[5]), initial = Held(defaults)](const Settings& settings) {
    const py::gil_scoped_acquire gil;
    py::dict options;
    for (const auto& [name, value] : py::reinterpret_borrow<py::dict>(initial.get()))
      options[name] = value_of(settings, name.cast<std::string>(), value);
    return std::make_unique<PythonFilter>(needs, function, Held(options));
  };
  return entry;
}

}  // namespace

void add_filters(FilterRegistry& registry, const py::list& filters) {
  for (const auto& filter : filters) registry.add(entry_of(filter.cast<py::tuple>()));
}

void bind_filters(py::module_& module) {
  py::class_<SignalView>(module, "SignalView",
                         "B rows of one micro-batch, all tensors [B] float32 on the training device.")
      .def_readonly("timestep", &SignalView::timestep, "in [0, num_timesteps)")
      .def_readonly("prediction_error", &SignalView::prediction_error,
                    "mean over C,H,W of (prediction - target)^2; always there")
      .def_readonly("elements", &SignalView::elements, "C*H*W of one row")
      .def(
          "signal", [](const SignalView& view, const std::string& name) { return view.signal(name); }, py::arg("name"),
          "A signal that the filter names; NaN where it needs a counterfactual prediction and the row was not probed.");
  module.def("signals", [] {
    py::dict all;
    const SignalRegistry registry = builtin_signals();
    for (const auto& signal : registry.entries()) all[py::str(signal.name)] = signal.doc;
    return all;
  });
  module.def("filters", [] {
    py::dict all;
    const FilterRegistry registry = builtin_filters();
    for (const auto& filter : registry.entries()) all[py::str(filter.name)] = filter.doc;
    return all;
  });
}

}  // namespace memsieve::python
