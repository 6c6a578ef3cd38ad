// What the sieve hands out: plans, ends of steps, reports, rows to look at.
#include <ATen/ATen.h>

#include "bindings.h"

namespace memsieve::python {

namespace {

/// `per_sample_loss` as the plan takes it: what is no tensor is missing, which Sieve.step says on all ranks.
at::Tensor loss_of(const py::object& object) {
  return is_tensor(object) ? object.cast<at::Tensor>() : at::Tensor();
}

void bind_plan(py::module_& module) {
  py::class_<Plan>(module, "Plan", "What to do with the rows of one micro-batch.")
      .def_property_readonly(
          "weights", [](const Plan& plan) { return plan.weight(); },
          "[B] float32 on the training device: 1 = train on it, 0 = dropped, between = down-weighted. None for a batch "
          "that was beyond use; `Sieve.step` says why.")
      .def(
          "divided_loss",
          [](const Plan& plan, const py::object& loss) {
            const at::Tensor per_sample = loss_of(loss);
            const py::gil_scoped_release released;
            return plan.loss(per_sample);
          },
          py::arg("per_sample_loss"))
      .def(
          "undivided_loss",
          [](const Plan& plan, const py::object& loss) {
            const at::Tensor per_sample = loss_of(loss);
            const py::gil_scoped_release released;
            return plan.undivided_loss(per_sample);
          },
          py::arg("per_sample_loss"));
}

void bind_step(py::module_& module) {
  py::class_<StepEnd>(module, "StepEnd")
      .def_readonly("grad_scale", &StepEnd::grad_scale)
      .def_readonly("skip", &StepEnd::skip)
      .def_readonly("nonfinite", &StepEnd::nonfinite);
  py::class_<StepReport>(module, "StepReport", "What happened in one optimiser step, over all ranks.")
      .def_readonly("step", &StepReport::step)
      .def_readonly("rows", &StepReport::rows, "training rows seen")
      .def_readonly("dropped", &StepReport::dropped, "rows with weight 0")
      .def_readonly("downweighted", &StepReport::downweighted, "rows with a weight between 0 and 1")
      .def_readonly("probed", &StepReport::probed, "rows that a counterfactual prediction was made for")
      .def_readonly("nonfinite", &StepReport::nonfinite, "rows with a NaN or Inf, held-out rows among them")
      .def_readonly("weight", &StepReport::weight, "sum of the weights")
      .def_readonly("mean_score", &StepReport::mean_score, "over the rows that have a score; NaN if none")
      .def_readonly("drop_level", &StepReport::drop_level, "the threshold that was in force")
      .def_readonly("scores", &StepReport::scores, "of the training rows that have one")
      .def_readonly("raw", &StepReport::raw, "for each filter, in the order of Sieve.channels: scores as measured")
      .def_readonly("skipped", &StepReport::skipped, "the update was skipped on all ranks")
      .def_readonly("passed_over", &StepReport::passed_over, "visits that the loop passed over")
      .def_readonly("drift", &StepReport::drift, "by how much the set as a whole is memorised, in z-scores of a visit");
}

void bind_visits(py::module_& module) {
  py::class_<Look>(module, "Look", "A flagged sample to look at again, without training on it.")
      .def_readonly("id", &Look::id)
      .def_readonly("timestep_fraction", &Look::timestep_fraction, "suggested timestep / num_timesteps")
      .def_readonly("place", &Look::place, "place among the step's looks over all ranks: key your noise by it");
  py::class_<HeldOutVisit>(module, "HeldOutVisit", "A held-out picture to observe.")
      .def_readonly("id", &HeldOutVisit::id, "the pseudo-row to hand to Sieve.observe as its id")
      .def_readonly("picture", &HeldOutVisit::picture, "index into the held-out set")
      .def_readonly("timestep_fraction", &HeldOutVisit::timestep_fraction, "suggested timestep / num_timesteps")
      .def_readonly("place", &HeldOutVisit::place, "place among the step's held-out rows: key your noise by it");
}

}  // namespace

void bind_values(py::module_& module) {
  bind_plan(module);
  bind_step(module);
  bind_visits(module);
}

}  // namespace memsieve::python
