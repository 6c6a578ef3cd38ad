"""Reads run folders of memsieve-train: configuration, metrics, samples, ledger."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from memsieve import ledger
from memsieve.reports.files import open_h5
from memsieve.reports.program import InputError


@dataclass
class Config:
    """A run's config.yaml, which is the whole resolved configuration; empty where the folder has none."""

    path: Path
    text: str = ""

    @classmethod
    def read(cls, run):
        path = Path(run) / "config.yaml"
        return cls(path, path.read_text() if path.exists() else "")

    @cached_property
    def values(self):
        try:
            # Every scalar stays the text that the file holds: a data set may be named 007.h5 or no.
            return yaml.load(self.text, Loader=yaml.BaseLoader) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self.path}:{mark.line + 1}" if mark else str(self.path)
            raise InputError(f"{where}: cannot be read as YAML: {getattr(error, 'problem', None) or error}") from None

    def get(self, key):
        """The text of a value by its dotted key, e.g. "sieve.evidence.pool"; None if it is not there or no scalar."""
        value = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) and value else None

    @property
    def train_data(self):
        found = self.get("data.train")
        if found is None:
            raise InputError(f"{self.path}: tells no data.train; name the data set with --data")
        return found


def read_info(path):
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(info, dict):
        raise InputError(f"{path}: not a run's description: no object")
    return info


@dataclass
class Run:
    """A run folder of memsieve-train."""

    path: Path
    config: Config
    steps: dict = field(default_factory=dict)        # name -> float [n], of the "step" lines of metrics.jsonl
    validation: np.ndarray = None                    # [n, 2] step, loss
    samples: dict = field(default_factory=dict)      # step -> uint8 [P, S, 3, H, W]
    ledger: np.ndarray = None                        # structured [visits], or None
    info: dict = field(default_factory=dict)         # run.json

    @classmethod
    def read(cls, path):
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: no such run folder")
        run = cls(path, Config.read(path))
        run.read_metrics(path / "metrics.jsonl")
        for file in sorted((path / "samples").glob("step-*.h5")):
            with open_h5(file) as handle:
                if "images" not in handle or handle["images"].ndim != 5:
                    raise InputError(f"{file}: no /images of shape [prompts, seeds, 3, height, width]")
                run.samples[int(re.search(r"step-(\d+)", file.name).group(1))] = handle["images"][:]
        if not run.samples:
            raise InputError(f"{path}: no samples/step-*.h5: the run drew nothing; set its sampling interval and prompts")
        if (path / "ledger.h5").exists():
            run.ledger = ledger.visits(path / "ledger.h5")
        if (path / "run.json").exists():
            run.info = read_info(path / "run.json")
        return run

    def read_metrics(self, path):
        if not path.exists():
            raise InputError(f"{path}: no such file")
        steps, validation = {}, {}
        for number, line in enumerate(path.read_text().split("\n"), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            if not isinstance(record, dict) or "kind" not in record:
                raise InputError(f"{path}:{number}: not a line of metrics: no \"kind\"")
            if record["kind"] == "step":
                steps[record["step"]] = record  # a resumed run writes some steps twice: the later counts
            elif record["kind"] == "validation":
                validation[record["step"]] = record["loss"]
        if not steps:
            raise InputError(f"{path}: holds no step")
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
        found = self.config.get("seed")
        return int(found) if found and found.isdecimal() else None

    def magnitudes(self, visits):
        """Magnitudes of ledger rows: the column holds the filter's score, a logarithm where its `scale` is log."""
        scores = visits["raw_magnitude"]
        return np.exp(scores) if self.config.get("sieve.filters.magnitude.scale") == "log" else scores

    def visits(self):
        """The ledger's visits of training rows, or None without a ledger."""
        return None if self.ledger is None else ledger.of_training_rows(self.ledger)
