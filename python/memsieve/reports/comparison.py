"""A run without the filter and a run with it, and every figure worked out from them."""

import os

import numpy as np

from memsieve.reports import figures
from memsieve.reports.dataset import DataSet
from memsieve.reports.program import InputError


class Comparison:
    """The runs, the data and every figure worked out from them."""

    def __init__(self, off, on, data, published=None, control=None):
        self.off, self.on, self.published, self.control = off, on, published, control
        self.mix = DataSet.read(os.path.join(data, "mix.h5"))
        self.prompts = DataSet.read(os.path.join(data, "prompts.h5"))
        self.count = int(self.prompts.repeated.sum())
        if not self.count or not self.prompts.repeated[:self.count].all():
            raise InputError(f"{data}/prompts.h5: the repeated pictures must come first")
        self.scores = {name: figures.copy_scores(run.last_samples, self.prompts.images) for name, run in self.runs()}
        self.drops, self.quarters = {}, {}
        for name, run in self.runs():
            visits = run.visits()
            if visits is None or not len(visits):
                continue
            if visits["sample"].max() >= len(self.mix.images):
                raise InputError(f"{run.path / 'ledger.h5'}: sample {visits['sample'].max()} is not in {data}/mix.h5 "
                                  f"({len(self.mix.images)} rows): the run used other data")
            self.drops[name], self.quarters[name] = figures.drop_figures(visits, self.mix.repeated)
        if "on" not in self.drops:
            raise InputError(f"{on.path / 'ledger.h5'}: no visits: the report needs the ledger of the filtered run")
        self.thinning = self.worked_control()
        self.published_thinning = self.interpolated(published) if "published" in self.drops else None

    def runs(self):
        named = (("off", self.off), ("published", self.published), ("on", self.on), ("control", self.control))
        return [(name, run) for name, run in named if run is not None]

    def worked_control(self):
        if self.control is not None:
            scores = self.scores["control"][:self.count]
            return {"source": "run", "copies": figures.copies(scores), "correlation": float(scores.mean())}
        return {"source": "interpolated", **self.interpolated(self.on)}

    def interpolated(self, run):
        return figures.thinning_control(self.off, run.visits(), self.off.visits(), self.mix, self.prompts.images, self.count)

    def summary(self):
        result = {"seed": self.on.seed}
        for name, run in self.runs():
            if name == "control":
                continue
            scores = self.scores[name]
            nearest = figures.nearest_scores(run.last_samples[:self.count], self.mix.images)
            result |= {f"copies_{name}": figures.copies(scores[:self.count]),
                       f"correlation_{name}": float(scores[:self.count].mean()),
                       f"copies_of_any_{name}": figures.copies(nearest),
                       f"ordinary_copies_{name}": figures.copies(scores[self.count:]) if len(scores) > self.count else None,
                       f"val_loss_{name}": run.val_loss, f"step_ms_{name}": run.step_ms,
                       f"last_step_{name}": int(max(run.samples))}
        result["copies_control"] = self.thinning["copies"]
        result["control"] = self.thinning
        result |= self.drops["on"]
        if "published" in self.drops:
            result |= {f"{key}_published": value for key, value in self.drops["published"].items()}
            result["copies_control_published"] = self.published_thinning["copies"]
        result["quarters"] = self.quarters["on"]
        result["generations"] = int(self.scores["on"][:self.count].size)
        return clean(result)


def clean(value):
    """NaN has no place in JSON: it becomes null."""
    if isinstance(value, dict):
        return {key: clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
