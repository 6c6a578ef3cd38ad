"""The stored results, and the figures that need more than one of them."""

import json

import numpy as np
from memsieve.reports.program import InputError

from . import shares
from .scenarios import BATCH, SCENARIOS


def read(folder):
    """{(scenario, rule): {seed: result}} of all results in a folder."""
    book = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            key, seed = (result["scenario"], result["rule"]), result["seed"]
            if result["format"] != "memsieve-detection" or result["version"] != 1:
                raise ValueError("not a result of this version")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a result of the detection benchmark: {error!r}") from None
        book.setdefault(key, {})[seed] = result
    return book


def of_drawings(copies):
    """{hits of each picture, drawings of each} -> share."""
    return shares.share(copies["hits"], [copies["of"]] * len(copies["hits"]))


def copies_pooled(runs, pick):
    """Share of copies over several runs; the drawings of one picture, of all seeds, are one cluster."""
    found = [copies for run in runs if (copies := pick(run)) is not None and copies["hits"]]
    if not found:
        return None
    return shares.share(np.sum([copies["hits"] for copies in found], axis=0),
                        np.full(len(found[0]["hits"]), sum(copies["of"] for copies in found)))


def last_copies(run):
    return run["drawings"][-1]["copies"]


def cyclic_copies(run):
    return run["cyclic"]["copies"] if "cyclic" in run else None


class Group:
    """The runs of one scenario under one rule, each with the plain run of its seed, if there is one."""

    def __init__(self, book, scenario, rule):
        self.scenario, self.rule = SCENARIOS[scenario], rule
        # A scenario without plain runs of its own has another's.
        home = self.scenario.of_plain if rule == "off" else scenario
        by_seed, plain = book.get((home, rule), {}), book.get((self.scenario.of_plain, "off"), {})
        self.seeds = sorted(by_seed)
        self.runs = [by_seed[seed] for seed in self.seeds]
        self.plain = [plain.get(seed) for seed in self.seeds]

    def values(self, get):
        """One value for each seed; None where it is not known."""
        return [get(run) for run in self.runs]

    def against_plain(self, get):
        """get(run) / get(plain run of the seed); None where one is not known."""
        both = [(get(run), get(plain) if plain else None) for run, plain in zip(self.runs, self.plain)]
        return [mine / plain if mine is not None and plain else None for mine, plain in both]

    def controls(self):
        """Copies of the plain run at as many visits to the repeated pictures as this one kept; for each seed."""
        return [control(run, plain) for run, plain in zip(self.runs, self.plain)]

    def dropped(self, rows, *path):
        """Share of dropped visits of "repeated" or "ordinary" rows, over all seeds; path: "all", or "quarters", 0."""
        return shares.pooled([reach(run, "dropped", rows, *path) for run in self.runs])

    def dropped_by_seed(self, rows, *path):
        return [shares.value(reach(run, "dropped", rows, *path)) for run in self.runs]


def reach(value, *path):
    for key in path:
        if value is None or (isinstance(value, dict) and key not in value):
            return None
        value = value[key]
    return value


def control(run, plain):
    """Interpolates between the plain run's drawings. Its visits to repeated rows are as many as their share of the rows: each
    epoch visits every row once."""
    if plain is None or "kept" not in run or not run["repeated_rows"]:
        return None
    step = run["kept"] / (BATCH * run["repeated_rows"] / run["rows"])
    at = [drawing["step"] for drawing in plain["drawings"]]
    found = [shares.value(of_drawings(drawing["copies"])) for drawing in plain["drawings"]]
    return float(np.interp(step, at, found))


def validation_loss(run):
    return run["validation"][-1][1] if run["validation"] else None
