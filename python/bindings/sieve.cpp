// The sieve itself. Everything runs without the GIL but for what calls Python.
#include <ATen/ATen.h>
#include <pybind11/stl.h>

#include <map>
#include <utility>
#include <vector>

#include "bindings.h"

namespace memsieve::python {

namespace {

/// The arguments of inspect(), observe(), look() and reference(), as Python gives them.
struct Arguments {
  py::object ids, timesteps, prediction, target;
  py::dict counterfactuals;
  py::object has_caption, exempt, stratum, likeness;
};

/// The predictions that are callables, or the others.
void fill_counterfactuals(Batch& batch, const Arguments& from, bool callables) {
  for (const auto& [name, source] : from.counterfactuals) {
    const bool is_callable = !is_tensor(source) && PyCallable_Check(source.ptr()) != 0;
    if (is_callable != callables) continue;
    const auto key = name.cast<std::string>();
    batch.counterfactuals[key] = counterfactual_of(py::reinterpret_borrow<py::object>(source), key, batch.prediction);
  }
}

/// Throws DataError for what is no tensor, or if a prediction is missing that the filters read.
void fill(Batch& batch, const Arguments& from, const std::vector<std::string>& needed) {
  // First, since the sieve calls them for a batch with a mistake, too.
  fill_counterfactuals(batch, from, true);
  batch.prediction = tensor_of(from.prediction, "prediction");
  batch.target = tensor_of(from.target, "target");
  batch.sample_id = tensor_of(from.ids, "ids");
  batch.timestep = tensor_of(from.timesteps, "timesteps");
  batch.has_caption = tensor_of(from.has_caption, "has_caption");
  batch.exempt = tensor_of(from.exempt, "exempt");
  batch.stratum = tensor_of(from.stratum, "stratum");
  batch.likeness = tensor_of(from.likeness, "likeness");
  fill_counterfactuals(batch, from, false);
  for (const auto& name : needed) {
    if (batch.counterfactuals.count(name) == 0) {
      throw DataError("batch: the prediction '" + name + "' is missing, which the configured filters read; pass " +
                      (name == "null" || name == "start" || name == "guidance"
                           ? name + "="
                           : "counterfactuals={\"" + name + "\": ...}: ") +
                      "a tensor like prediction or a callable that takes row numbers");
    }
  }
}

class PySieve {
 public:
  explicit PySieve(Sieve sieve) : sieve_(std::move(sieve)), needed_(sieve_.counterfactuals()) {}
  Sieve& get() { return sieve_; }

  /// A batch as far as it can be read; what is wrong with it goes to end_step, which throws it on every rank.
  Batch batch_of(const Arguments& from, bool needs_start = true) {
    Batch batch;
    std::vector<std::string> needed;
    for (const auto& name : needed_) {
      if (needs_start || name != "start") needed.push_back(name);
    }
    try {
      fill(batch, from, needed);
    } catch (...) {
      sieve_.fail(std::current_exception());
    }
    return batch;
  }

 private:
  Sieve sieve_;
  std::vector<std::string> needed_;
};

Setup setup_of(const py::dict& words) {
  Setup setup;
  setup.filters = builtin_filters();
  add_filters(setup.filters, words["filters"].cast<py::list>());
  setup.dataset_size = words["dataset_size"].cast<int64_t>();
  setup.samples = words["samples"].cast<std::optional<int64_t>>();
  setup.rows_per_micro_batch = words["batch_size"].cast<int64_t>();
  setup.micro_batches = words["micro_batches"].cast<int64_t>();
  setup.num_timesteps = words["num_timesteps"].cast<int64_t>();
  setup.held_out_size = words["held_out_size"].cast<int64_t>();
  setup.strata = words["strata"].cast<int64_t>();
  setup.device = words["device"].cast<at::Device>();
  setup.run_id = words["run_id"].cast<std::string>();
  setup.ledger_path = words["ledger"].cast<std::string>();
  setup.overrides = words["overrides"].cast<std::vector<std::string>>();
  const at::Tensor group = tensor_of(words["group_ids"], "group_ids");
  if (!group.defined()) return setup;
  if (group.dim() != 1 || group.scalar_type() != at::kLong)
    throw ConfigError("group_ids: must be int64 [dataset_size], one group for each sample");
  const at::Tensor ids = group.cpu().contiguous();
  setup.group_id.assign(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel());
  return setup;
}

/// `text` None: the configuration stands in the file `source`.
std::unique_ptr<PySieve> make(const py::object& text, const std::string& source, const py::object& group,
                              const py::dict& words) {
  const Setup setup = setup_of(words);
  const auto ranks = communicator_of(group, setup.device);
  const std::string yaml = text.is_none() ? "" : text.cast<std::string>();
  const bool from_file = text.is_none();
  const py::gil_scoped_release released;
  return std::make_unique<PySieve>(from_file ? Sieve::from_yaml(source, ranks, setup)
                                             : Sieve::from_text(yaml, source, ranks, setup));
}

Plan inspect(PySieve& self, const Arguments& arguments, const Clock& clock) {
  const Batch batch = self.batch_of(arguments);
  const py::gil_scoped_release released;
  return self.get().inspect(batch, clock);
}

void fail(PySieve& self, const py::object& error) {
  try {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    throw py::error_already_set();
  } catch (...) {
    self.get().fail(std::current_exception());
  }
}

StepEnd end_step(PySieve& self, const Clock& clock, const std::vector<at::Tensor>& gradients) {
  const py::gil_scoped_release released;
  return self.get().end_step(clock, gradients);
}

void bind_batches(py::class_<PySieve>& sieve) {
  sieve.def("inspect", inspect)
      .def("observe",
           [](PySieve& self, const Arguments& arguments, const Clock& clock) {
             const Batch batch = self.batch_of(arguments);
             const py::gil_scoped_release released;
             self.get().observe(batch, clock);
           })
      .def("look",
           [](PySieve& self, const Arguments& arguments, const Clock& clock) {
             const Batch batch = self.batch_of(arguments);
             const py::gil_scoped_release released;
             self.get().look(batch, clock);
           })
      .def("reference", [](PySieve& self, const Arguments& arguments, bool held_out) {
        const Batch batch = self.batch_of(arguments, false);
        const py::gil_scoped_release released;
        return self.get().reference(batch, held_out);
      });
}

}  // namespace

void bind_sieve(py::module_& module) {
  py::class_<Clock>(module, "Clock").def(py::init<int64_t, int64_t>(), py::arg("step"), py::arg("epoch"));
  py::class_<Arguments>(module, "Arguments")
      .def(py::init<py::object, py::object, py::object, py::object, py::dict, py::object, py::object, py::object,
                    py::object>());
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<PySieve> sieve(module, "Sieve");
  sieve.def(py::init(&make));
  bind_batches(sieve);
  sieve.def("fail", fail)
      .def("end_step", end_step)
      .def(
          "flush", [](PySieve& self) { self.get().flush(); }, Released())
      .def(
          "finish_reference", [](PySieve& self) { self.get().finish_reference(); }, Released())
      .def("reference_draws", [](PySieve& self) { return self.get().reference_draws(); })
      .def("has_reference", [](PySieve& self) { return self.get().has_reference(); })
      .def("held_out_visits", [](PySieve& self, int64_t step) { return self.get().held_out_visits(step); })
      .def("flagged", [](PySieve& self, int64_t step) { return self.get().flagged(step); })
      .def("looks", [](PySieve& self, int64_t step) { return self.get().looks(step); })
      .def("pass_over",
           [](PySieve& self, const std::vector<int64_t>& ids, const Clock& clock) { self.get().pass_over(ids, clock); })
      .def("take_reports", [](PySieve& self) { return self.get().take_reports(); })
      .def("state", [](PySieve& self) { return self.get().state(); })
      .def("restore", [](PySieve& self, const std::map<std::string, at::Tensor>& state) { self.get().restore(state); })
      .def("channels", [](PySieve& self) { return self.get().channels(); })
      .def("counterfactuals", [](PySieve& self) { return self.get().counterfactuals(); })
      .def("warnings", [](PySieve& self) { return self.get().warnings(); });
}

}  // namespace memsieve::python
