#!/usr/bin/env python3
"""What a run dropped and why: one HTML page with the samples that lost most, and a CSV file with all of them.

    ledger_view.py runs/mine                      # writes runs/mine/dropped.html and runs/mine/dropped.csv
    ledger_view.py runs/mine --by sample --top 300 --data data/mine/train.h5 --out /tmp/look
"""

import argparse
import csv
import io
import sys
from pathlib import Path

from reports import program


def table(lines):
    """CSV of dictionaries that have the same keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def make(arguments):
    from reports import ledger, ledger_page, losses
    from reports.dataset import OpenDataSet
    from reports.files import replace_file
    from reports.run import Config
    path = Path(arguments.run) / "ledger.h5"
    visits = ledger.of_training_rows(ledger.read_ledger(path))
    if not len(visits):
        raise program.InputError(f"{path}: holds no visit of a training row yet")
    data = OpenDataSet(arguments.data or Config.read(arguments.run).train_data)
    if visits["sample"].max() >= data.size:
        raise program.InputError(f"{data.path}: has {data.size} rows, but the run visited sample {visits['sample'].max()}; "
                                 "name its own data set with --data")
    parts = losses.collect(visits, arguments.by)
    lines = [losses.figures(part, data) for part in parts]
    out = Path(arguments.out or arguments.run)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "dropped.csv", table(lines).encode())
    replace_file(out / "dropped.html", ledger_page.render(arguments.run, parts, lines, data, arguments.top, arguments.by).encode())
    print(f"{int((visits['weight'] == 0).sum())} of {len(visits)} visits dropped; {out / 'dropped.html'}, {out / 'dropped.csv'}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of memsieve-train, also of a run that goes on")
    parser.add_argument("--data", metavar="H5", help="the data set it trained on (default: data.train of the run's config.yaml)")
    parser.add_argument("--by", choices=("group", "sample"), default="group", help="count copies of one picture together, or "
                        "every row by itself (default: %(default)s)")
    parser.add_argument("--top", type=int, default=100, help="how many the page shows (default: %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="where page and CSV go (default: the run folder)")
    return program.run("ledger_view", make, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
