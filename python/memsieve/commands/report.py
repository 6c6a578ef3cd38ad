"""Compares a run without the filter with a run with it: one HTML page, one picture, one summary.json.

    memsieve report --off runs/demo/off --on runs/demo/on --data data/demo --out runs/demo
"""

import argparse
import json
from pathlib import Path

from memsieve.reports import program
from memsieve.reports.words import change, percent


def five_lines(summary, page):
    from memsieve.reports.figures import COPY
    control = summary["control"]
    where = (f"interpolated between its samples, step {control['step']:.0f}" if control["source"] == "interpolated"
             else "a run of its own")
    losses = [f"{value:.4f}" if value is not None else "n/a" for value in (summary["val_loss_off"], summary["val_loss_on"])]
    return [
        f"copies      {percent(summary['copies_off'], 0)} of {summary['generations']} drawings without the filter, "
        f"{percent(summary['copies_on'], 0)} with it (correlation > {COPY} with the training picture)",
        f"control     {percent(summary['copies_control'], 0)} for the plain run at as many visits of the repeated pictures "
        f"as the filter kept ({where})",
        f"dropped     {percent(summary['repeated_dropped'])} of the visits of repeated pictures, "
        f"{percent(summary['ordinary_dropped'])} of the ordinary ones (precision {percent(summary['precision'])})",
        f"validation  loss {losses[0]} without, {losses[1]} with ({change(summary)}); ordinary pictures never trained on",
        f"time        {summary['step_ms_off']:.0f} ms a step without, {summary['step_ms_on']:.0f} ms with "
        f"(x{summary['step_ms_on'] / summary['step_ms_off']:.2f}); report: {page}",
    ]


def make(arguments):
    from memsieve.reports import report_page, report_picture
    from memsieve.reports.comparison import Comparison
    from memsieve.reports.files import replace_file
    from memsieve.reports.run import Run
    optional = {name: Run.read(path) if path else None
                for name, path in (("published", arguments.published), ("control", arguments.control))}
    comparison = Comparison(Run.read(arguments.off), Run.read(arguments.on), arguments.data, **optional)
    summary = comparison.summary()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.html", report_page.render(comparison, summary, arguments.title).encode())
    replace_file(out / "report.png", report_picture.render(comparison, summary))
    replace_file(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    print("\n".join(five_lines(summary, out / "report.html")))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="memsieve report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--off", required=True, metavar="RUN", help="run folder of the plain run")
    parser.add_argument("--on", required=True, metavar="RUN", help="run folder of the filtered run")
    parser.add_argument("--published", metavar="RUN", help="run folder of a run with the published rule")
    parser.add_argument("--control", metavar="RUN", help="run folder of a plain run with as many visits of the repeated "
                        "pictures as the filter kept; without it the plain run's intermediate samples serve")
    parser.add_argument("--data", default="data/demo", help="folder with mix.h5 and prompts.h5 (default: %(default)s)")
    parser.add_argument("--out", default="runs/demo", help="where the report goes (default: %(default)s)")
    parser.add_argument("--title", default="Copying, with and without the filter", help="the page's title")
    return program.run("memsieve report", make, parser.parse_args(argv))
