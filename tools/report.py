#!/usr/bin/env python3
"""Compares a run without the filter with a run with it: one HTML page, one picture, one summary.json.

    report.py --off runs/demo/off --on runs/demo/on --data data/demo --out runs/demo
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

import report_data as rd
from report_data import DataSet, ReportError, Run, change, percent


class Comparison:
    """The runs, the data and every figure worked out from them."""

    def __init__(self, off, on, data, published=None, control=None):
        self.off, self.on, self.published, self.control = off, on, published, control
        self.mix = DataSet.read(os.path.join(data, "mix.h5"))
        self.prompts = DataSet.read(os.path.join(data, "prompts.h5"))
        self.count = int(self.prompts.repeated.sum())
        if not self.count or not self.prompts.repeated[:self.count].all():
            raise ReportError(f"{data}/prompts.h5: the repeated pictures must come first")
        self.scores = {name: rd.copy_scores(run.last_samples, self.prompts.images) for name, run in self.runs()}
        self.drops, self.quarters = {}, {}
        for name, run in self.runs():
            visits = run.visits()
            if visits is None or not len(visits):
                continue
            if visits["sample"].max() >= len(self.mix.images):
                raise ReportError(f"{run.path / 'ledger.h5'}: sample {visits['sample'].max()} is not in {data}/mix.h5 "
                                  f"({len(self.mix.images)} rows): the run used other data")
            self.drops[name], self.quarters[name] = rd.drop_figures(visits, self.mix.repeated)
        if "on" not in self.drops:
            raise ReportError(f"{on.path / 'ledger.h5'}: no visits: the report needs the ledger of the filtered run")
        self.thinning = self.worked_control()
        self.published_thinning = self.interpolated(published) if "published" in self.drops else None

    def runs(self):
        named = (("off", self.off), ("published", self.published), ("on", self.on), ("control", self.control))
        return [(name, run) for name, run in named if run is not None]

    def worked_control(self):
        if self.control is not None:
            scores = self.scores["control"][:self.count]
            return {"source": "run", "copies": rd.copies(scores), "correlation": float(scores.mean())}
        return {"source": "interpolated", **self.interpolated(self.on)}

    def interpolated(self, run):
        return rd.thinning_control(self.off, run.visits(), self.off.visits(), self.mix, self.prompts.images, self.count)

    def summary(self):
        result = {"seed": self.on.seed}
        for name, run in self.runs():
            if name == "control":
                continue
            scores = self.scores[name]
            nearest = rd.nearest_scores(run.last_samples[:self.count], self.mix.images)
            result |= {f"copies_{name}": rd.copies(scores[:self.count]),
                       f"correlation_{name}": float(scores[:self.count].mean()),
                       f"copies_of_any_{name}": rd.copies(nearest),
                       f"ordinary_copies_{name}": rd.copies(scores[self.count:]) if len(scores) > self.count else None,
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
        return result


def five_lines(summary, page):
    control = summary["control"]
    where = (f"interpolated between its samples, step {control['step']:.0f}" if control["source"] == "interpolated"
             else "a run of its own")
    losses = [f"{value:.4f}" if value is not None else "n/a" for value in (summary["val_loss_off"], summary["val_loss_on"])]
    return [
        f"copies      {percent(summary['copies_off'], 0)} of {summary['generations']} drawings without the filter, "
        f"{percent(summary['copies_on'], 0)} with it (correlation > {rd.COPY} with the training picture)",
        f"control     {percent(summary['copies_control'], 0)} for the plain run at as many visits of the repeated pictures "
        f"as the filter kept ({where})",
        f"dropped     {percent(summary['repeated_dropped'])} of the visits of repeated pictures, "
        f"{percent(summary['ordinary_dropped'])} of the ordinary ones (precision {percent(summary['precision'])})",
        f"validation  loss {losses[0]} without, {losses[1]} with ({change(summary)}); ordinary pictures never trained on",
        f"time        {summary['step_ms_off']:.0f} ms a step without, {summary['step_ms_on']:.0f} ms with "
        f"(x{summary['step_ms_on'] / summary['step_ms_off']:.2f}); report: {page}",
    ]


def clean(value):
    """NaN has no place in JSON: it becomes null."""
    if isinstance(value, dict):
        return {key: clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value


def replace_file(path, content):
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def make(arguments):
    import report_page
    import report_picture
    optional = {name: Run.read(path) if path else None
                for name, path in (("published", arguments.published), ("control", arguments.control))}
    comparison = Comparison(Run.read(arguments.off), Run.read(arguments.on), arguments.data, **optional)
    summary = clean(comparison.summary())
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.html", report_page.render(comparison, summary, arguments.title).encode())
    replace_file(out / "report.png", report_picture.render(comparison, summary))
    replace_file(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    print("\n".join(five_lines(summary, out / "report.html")))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--off", required=True, metavar="RUN", help="run folder of the plain run")
    parser.add_argument("--on", required=True, metavar="RUN", help="run folder of the filtered run")
    parser.add_argument("--published", metavar="RUN", help="run folder of a run with the published rule")
    parser.add_argument("--control", metavar="RUN", help="run folder of a plain run with as many visits of the repeated "
                        "pictures as the filter kept; without it the plain run's intermediate samples serve")
    parser.add_argument("--data", default="data/demo", help="folder with mix.h5 and prompts.h5 (default: %(default)s)")
    parser.add_argument("--out", default="runs/demo", help="where the report goes (default: %(default)s)")
    parser.add_argument("--title", default="Copying, with and without the filter", help="the page's title")
    try:
        make(parser.parse_args(argv))
    except (ReportError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 3
    except ImportError as error:
        print(f"report: {error}: pip install h5py numpy pillow matplotlib", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
