"""The figures of one finished run, from its ledger, metrics, drawings and checkpoint, as one object for JSON."""

import numpy as np
from memsieve.ledger import PASSED_OVER, completed, of_training_rows
from memsieve.reports import figures
from memsieve.reports.dataset import DataSet
from memsieve.reports.files import open_h5
from memsieve.reports.program import InputError
from memsieve.reports.run import Run

from . import runs
from .scenarios import BATCH
from .shares import share

ROUNDS = 10         # of cyclic denoising


class Targets:
    """What a drawing of each prompt may copy: one picture or, for near copies, any of several."""

    def __init__(self, folder):
        self.prompts = DataSet.read(folder / "prompts.h5")
        self.repeated = int(self.prompts.repeated.sum())
        if not self.prompts.repeated[:self.repeated].all():
            raise InputError(f"{folder / 'prompts.h5'}: the repeated pictures must come first")
        path = folder / "targets.h5"
        several = DataSet.read(path) if path.exists() else None
        images = self.prompts.images if several is None else several.images
        self.prompt = np.arange(len(images)) if several is None else several.group
        self.units = figures.units(images)

    def scores(self, drawn):
        """drawn [P, S, 3, H, W] of the first P prompts -> correlation [P, S] with the target that is most alike."""
        return np.stack([(figures.units(drawings) @ self.units[self.prompt == p].T).max(axis=1)
                         for p, drawings in enumerate(drawn)])


def copies(scores):
    """Copies among each prompt's drawings."""
    return {"hits": (scores > figures.COPY).sum(axis=1).tolist(), "of": int(scores.shape[1])}


def mean(scores):
    return float(scores.mean()) if scores.size else None


def drawing_figures(run, targets):
    """Copies and correlations at every step that drawings were made at."""
    result = []
    for step in sorted(run.samples):
        scores = targets.scores(run.samples[step])
        own, ordinary = scores[:targets.repeated], scores[targets.repeated:]
        result.append({"step": step, "copies": copies(own), "correlation": mean(own),
                       "ordinary_copies": copies(ordinary), "ordinary_correlation": mean(ordinary)})
    return result


def training_visits(ledger):
    """Visits of training rows; those passed over by the sampler count as visits that were dropped."""
    visits = of_training_rows(ledger).copy()
    visits["weight"][visits["kind"] == PASSED_OVER] = 0
    return visits


def dropped(visits, mask, rows):
    """Share of dropped visits among those of `mask`, the visits of one row being one cluster."""
    samples, gone = visits["sample"][mask], visits["weight"][mask] == 0
    return share(np.bincount(samples, gone, rows), np.bincount(samples, minlength=rows))


def drop_figures(visits, repeated, steps, parts):
    """{all, quarters, parts} of repeated and of ordinary rows."""
    done, result = completed(visits["step"]), {}
    for name, rows in (("repeated", repeated), ("ordinary", ~repeated)):
        of = rows[visits["sample"]]
        quarters = [dropped(visits, of & (done > steps * q / 4) & (done <= steps * (q + 1) / 4), len(repeated)) for q in range(4)]
        result[name] = {"all": dropped(visits, of, len(repeated)), "quarters": quarters,
                        "parts": {part: dropped(visits, of & (done <= until), len(repeated)) for part, until in parts.items()},
                        "rows_never_dropped": never_dropped(visits[of])}
    return result


def never_dropped(visits):
    rows = np.unique(visits["sample"])
    return 1 - len(np.unique(visits["sample"][visits["weight"] == 0])) / len(rows) if len(rows) else None


def kept_visits(visits, repeated):
    """Visits of repeated rows, each counted with its weight in the loss."""
    return float(visits["weight"][repeated[visits["sample"]]].sum(dtype=float))


def ordinary_row_ms(run, visits, repeated, steps):
    """Milliseconds of a step in the second half, for each ordinary row that it trains on."""
    late = run.steps["step_ms"][run.steps["step"] >= steps // 2]
    if visits is None:
        rows = BATCH * float((~repeated).mean())
    else:
        mine = visits[(visits["step"] >= steps // 2) & (visits["weight"] > 0)]
        rows = int((~repeated[mine["sample"]]).sum()) / max(len(late), 1)
    return float(np.nanmedian(late)) / rows if rows and len(late) else None


def cyclic_figures(job, run, targets, rounds):
    from . import cyclic
    drawings = run.last_samples[:targets.repeated]
    sampling = {"guidance_scale": 1} | job.config["sampling"]
    with open_h5(job.place.root / job.data / "prompts.h5") as prompts:
        base = job.place.root / job.scenario.base
        again = cyclic.rounds_of(job.run, base, prompts, drawings, sampling, rounds, job.seed)
    scores = targets.scores(again)
    return {"rounds": rounds, "copies": copies(scores), "correlation": mean(scores)}


def measure(job, rounds=ROUNDS):
    """Every figure of a finished run."""
    root, scenario = job.place.root, job.scenario
    run, targets = Run.read(job.run), Targets(root / job.data)
    with open_h5(root / job.data / "mix.h5") as file:
        repeated = file["repeated"][:].astype(bool)
    visits = None if run.ledger is None else training_visits(run.ledger)
    if visits is not None and len(visits) and visits["sample"].max() >= len(repeated):
        raise InputError(f"{job.run / 'ledger.h5'}: sample {visits['sample'].max()} is not in {job.data}/mix.h5, which has "
                         f"{len(repeated)} rows: the run used other data")
    drawings = drawing_figures(run, targets)
    result = {"format": "memsieve-detection", "version": 1, "fingerprint": job.fingerprint, "scenario": scenario.name,
              "rule": job.rule, "seed": job.seed, "steps": scenario.steps, "rows": len(repeated),
              "repeated_rows": int(repeated.sum()), "drawings": drawings,
              "validation": [[int(step), loss] for step, loss in run.validation.tolist()], "step_ms": run.step_ms,
              "seconds": runs.processor_seconds(job),
              "ordinary_row_ms": ordinary_row_ms(run, visits, repeated, scenario.steps), "sieve": job.config.get("sieve")}
    if targets.repeated:
        result["cyclic"] = cyclic_figures(job, run, targets, rounds)
    if visits is not None:
        result |= {"kept": kept_visits(visits, repeated), "dropped": drop_figures(visits, repeated, scenario.steps, scenario.parts)}
    return rounded(result)


def rounded(value):
    """Six significant digits; NaN becomes null, which JSON has."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
