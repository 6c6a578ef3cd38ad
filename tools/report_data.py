"""Reads run folders and demo data, and works out every figure that report.py shows."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # a run may still be writing its ledger

import h5py
import numpy as np
import yaml

COPY = 0.8        # correlation from which a drawing counts as a copy
WINDOWS = 20      # windows of steps in the curves over time


class ReportError(Exception):
    """Something is missing or wrong in the input; its text is one line."""


def open_h5(path, **options):
    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        reason = "no such file" if not os.path.exists(path) else str(error).split("(")[0].strip()
        raise ReportError(f"{path}: cannot be read as HDF5: {reason}") from None


@dataclass
class DataSet:
    """One HDF5 data set: what the report needs of it."""

    images: np.ndarray     # uint8 [N, 3, H, W]
    captions: list
    group: np.ndarray      # int64 [N]
    repeated: np.ndarray   # bool [N], the truth

    @classmethod
    def read(cls, path):
        with open_h5(path) as file:
            for name in ("images", "caption", "repeated"):
                if name not in file:
                    raise ReportError(f"{path}: no /{name}: the report needs a data set with images, captions and the truth")
            count = len(file["images"])
            group = file["group_id"][:] if "group_id" in file else np.arange(count)
            captions = [text.decode() if isinstance(text, bytes) else text for text in file["caption"][:]]
            return cls(file["images"][:], captions, group, file["repeated"][:].astype(bool))


@dataclass
class Run:
    """A run folder of memsieve-train."""

    path: Path
    steps: dict = field(default_factory=dict)        # name -> float [n], of the "step" lines of metrics.jsonl
    validation: np.ndarray = None                    # [n, 2] step, loss
    samples: dict = field(default_factory=dict)      # step -> uint8 [P, S, 3, H, W]
    ledger: np.ndarray = None                        # structured [visits], or None
    info: dict = field(default_factory=dict)         # run.json
    config: str = ""                                 # config.yaml

    @classmethod
    def read(cls, path):
        path = Path(path)
        if not path.is_dir():
            raise ReportError(f"{path}: no such run folder")
        run = cls(path)
        run.read_metrics(path / "metrics.jsonl")
        for file in sorted((path / "samples").glob("step-*.h5")):
            with open_h5(file) as handle:
                if "images" not in handle or handle["images"].ndim != 5:
                    raise ReportError(f"{file}: no /images of shape [prompts, seeds, 3, height, width]")
                run.samples[int(re.search(r"step-(\d+)", file.name).group(1))] = handle["images"][:]
        if not run.samples:
            raise ReportError(f"{path}: no samples/step-*.h5: the run drew nothing; set its sampling interval and prompts")
        if (path / "ledger.h5").exists():
            with open_h5(path / "ledger.h5", libver="latest", swmr=True) as handle:
                if "visits" not in handle:
                    raise ReportError(f"{path / 'ledger.h5'}: no /visits")
                run.ledger = handle["visits"][:]
        if (path / "run.json").exists():
            run.info = json.loads((path / "run.json").read_text())
        if (path / "config.yaml").exists():
            run.config = (path / "config.yaml").read_text()
        return run

    def read_metrics(self, path):
        if not path.exists():
            raise ReportError(f"{path}: no such file")
        steps, validation = {}, {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            if not isinstance(record, dict) or "kind" not in record:
                raise ReportError(f"{path}:{number}: not a line of metrics: no \"kind\"")
            if record["kind"] == "step":
                steps[record["step"]] = record  # a resumed run writes some steps twice: the later counts
            elif record["kind"] == "validation":
                validation[record["step"]] = record["loss"]
        if not steps:
            raise ReportError(f"{path}: holds no step")
        ordered = [steps[step] for step in sorted(steps)]
        for name in ("step", "step_ms", "loss"):
            self.steps[name] = np.array([np.nan if r.get(name) is None else r[name] for r in ordered], dtype=float)
        self.validation = np.array([[s, np.nan if v is None else v] for s, v in sorted(validation.items())]).reshape(-1, 2)

    @property
    def last_samples(self):
        return self.samples[max(self.samples)]

    @property
    def val_loss(self):
        return float(self.validation[-1, 1]) if len(self.validation) else None

    @property
    def step_ms(self):
        return float(np.nanmedian(self.steps["step_ms"]))

    @property
    def seed(self):
        if "seed" in self.info:
            return self.info["seed"]
        found = re.search(r"^\s*seed:\s*(\d+)", self.config, re.MULTILINE)
        return int(found.group(1)) if found else None

    def magnitudes(self, rows):
        """Magnitudes of ledger rows: the column holds the filter's score, a logarithm where its `scale` is log."""
        settings = (yaml.safe_load(self.config) or {}).get("sieve", {}).get("filters", {}).get("magnitude", {})
        return np.exp(rows["raw_magnitude"]) if settings.get("scale") == "log" else rows["raw_magnitude"]

    def visits(self):
        """The ledger's visits of training rows, or None without a ledger."""
        return None if self.ledger is None else self.ledger[self.ledger["kind"] == 0]


def units(images):
    """uint8 [N, 3, H, W] -> float64 [N, 3HW]: the mean over all channels removed, length 1."""
    flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def copy_scores(drawn, originals):
    """drawn [P, S, 3, H, W], originals [P, 3, H, W] -> correlation [P, S] of each drawing with its own original."""
    if len(drawn) != len(originals) or drawn.shape[2:] != originals.shape[1:]:
        raise ReportError(f"samples of shape {list(drawn.shape)} do not fit prompts.h5 with images {list(originals.shape)}: "
                          "the run was sampled with other prompts")
    own = units(originals)
    return np.stack([units(drawings) @ own[p] for p, drawings in enumerate(drawn)])


def nearest_scores(drawn, training):
    """Correlation [P, S] of each drawing with the training picture that it resembles most."""
    flat = units(drawn.reshape(-1, *drawn.shape[2:])) @ units(training).T
    return flat.max(axis=1).reshape(drawn.shape[:2])


def copies(scores):
    return float((scores > COPY).mean())


def completed(ledger_step):
    """Steps done once the visits of `ledger_step` count: the ledger may number steps from 0 or from 1."""
    steps = ledger_step.astype(np.int64)
    return steps + 1 if len(steps) and steps.min() == 0 else steps


def drop_figures(visits, repeated):
    """Shares of visits with weight 0, precision and recall against the truth, overall and by quarter of the steps."""
    truth, dropped, step = repeated[visits["sample"]], visits["weight"] == 0, completed(visits["step"])

    def figures(mask):
        bad, ok = truth & mask, ~truth & mask
        hits, wrong = int((dropped & bad).sum()), int((dropped & ok).sum())
        return {"repeated_dropped": hits / bad.sum() if bad.any() else None,
                "ordinary_dropped": wrong / ok.sum() if ok.any() else None,
                "precision": hits / (hits + wrong) if hits + wrong else None,
                "recall": hits / bad.sum() if bad.any() else None}

    last = step.max() if len(step) else 0
    quarters = [figures((step > last * q / 4) & (step <= last * (q + 1) / 4)) for q in range(4)]
    return figures(np.ones(len(step), dtype=bool)), quarters


def window_edges(last, count=WINDOWS):
    count = int(max(1, min(count, last)))
    return np.linspace(0, last, count + 1)


def quartiles_by_window(step, values, edges):
    """-> (centre of window, 25 %, 50 %, 75 %) over finite values, windows without any left out."""
    rows = []
    for low, high in zip(edges[:-1], edges[1:]):
        part = values[(step > low) & (step <= high)]
        part = part[np.isfinite(part)]
        if len(part):
            rows.append([(low + high) / 2, *np.percentile(part, [25, 50, 75])])
    return np.array(rows).reshape(-1, 4)


def share_by_window(step, hit, edges):
    rows = [[(low + high) / 2, hit[inside].mean()] for low, high in zip(edges[:-1], edges[1:])
            if (inside := (step > low) & (step <= high)).any()]
    return np.array(rows).reshape(-1, 2)


def thinning_control(off, on_visits, off_visits, mix, originals, count):
    """Copies of the plain run at the step where it had trained as much on the repeated pictures as a filtered run kept.

    Interpolates linearly between the two samples next to that step. The plain run's visits are taken from its own ledger,
    or, without one, from the filtered run's: with one seed both see the same rows.
    """
    truth = mix.repeated[on_visits["sample"]]
    kept = float(on_visits["weight"][truth].sum())
    source = on_visits if off_visits is None else off_visits
    steps = np.sort(completed(source["step"])[mix.repeated[source["sample"]]])
    seen = np.arange(1, len(steps) + 1)
    step = float(np.interp(kept, seen, steps)) if len(steps) else 0.0
    at = sorted(off.samples)
    shares = [copies(copy_scores(off.samples[s], originals)[:count]) for s in at]
    means = [float(copy_scores(off.samples[s], originals)[:count].mean()) for s in at]
    below = max([s for s in at if s <= step], default=at[0])
    above = min([s for s in at if s >= step], default=at[-1])
    return {"kept_visits": kept, "all_visits": int(len(steps)), "step": step, "between": [below, above],
            "copies": float(np.interp(step, at, shares)), "correlation": float(np.interp(step, at, means))}


def dropped_by_picture(visits, data):
    """{group: (visits, visits dropped, a row of it, repeated)}"""
    dropped, result = visits["weight"] == 0, {}
    groups = data.group[visits["sample"]]
    for group in np.unique(groups):
        mask = groups == group
        row = int(np.flatnonzero(data.group == group)[0])
        result[int(group)] = (int(mask.sum()), int(dropped[mask].sum()), row, bool(data.repeated[row]))
    return result


def percent(value, digits=1):
    """0.125 -> "12.5%"; None -> "n/a"."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def change(summary, name="on"):
    """Validation loss of a run against the plain run, as a signed percentage."""
    off, value = summary["val_loss_off"], summary[f"val_loss_{name}"]
    return "n/a" if not off or value is None else f"{100 * (value / off - 1):+.1f}%"
