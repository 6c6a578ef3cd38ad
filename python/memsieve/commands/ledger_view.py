"""What a run dropped and why: one HTML page with the samples that lost most, and a CSV file with all of them.

    memsieve view runs/mine                      # writes runs/mine/dropped.html and runs/mine/dropped.csv
    memsieve view runs/mine --by sample --top 300 --data data/mine/train.h5 --out /tmp/look
    memsieve view ledger.h5 --data pictures.txt --open     # the ledger of any trainer

A text file of pictures has the path of one on each line, those of samples 0, 1, ...; or a sample's id, a tab, and its path.
"""

import argparse
import webbrowser
from pathlib import Path

from memsieve.reports import program


def data_of(arguments, folder):
    from memsieve.reports import dataset
    from memsieve.reports.run import Config
    config = Config.read(folder)
    if arguments.data is None and not config.text:
        return dataset.NoData()
    return dataset.open_data(arguments.data or config.train_data)


def table(samples, data):
    """What dropped.csv holds: samples() with captions and file names."""
    table = samples.drop(columns=["sample", "group"]).round(4)
    rows = samples["sample"].tolist()
    table["caption"], table["file_name"] = ([data.words(name, row) for row in rows] for name in ("caption", "file_name"))
    return table


def make(arguments):
    from memsieve import ledger
    from memsieve.reports import ledger_page
    from memsieve.reports.files import replace_file
    path = ledger.path_of(arguments.run)
    visits = ledger.training(path)
    if not len(visits):
        raise program.InputError(f"{path}: holds no visit of a training row yet")
    data = data_of(arguments, path.parent)
    if data.size is not None and visits["sample"].max() >= data.size:
        raise program.InputError(f"{data.path}: has {data.size} rows, but the run visited sample {visits['sample'].max()}; "
                                 "name its own data set with --data")
    samples = ledger.samples(visits, arguments.by)
    lines = table(samples, data)
    out = Path(arguments.out or path.parent)
    out.mkdir(parents=True, exist_ok=True)
    page = ledger_page.render(arguments.run, visits, samples, lines, data, arguments.top, arguments.by)
    replace_file(out / "dropped.csv", lines.to_csv(lineterminator="\n").encode())
    replace_file(out / "dropped.html", page.encode())
    print(f"{int((visits['weight'] == 0).sum())} of {len(visits)} visits dropped; {out / 'dropped.html'}, {out / 'dropped.csv'}")
    if arguments.open:
        webbrowser.open((out / "dropped.html").resolve().as_uri())


def main(argv=None):
    parser = argparse.ArgumentParser(prog="memsieve view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a ledger, or the run folder that holds ledger.h5; also of a run that goes on")
    parser.add_argument("--data", metavar="FILE", help="what it trained on: a data set (HDF5), or a text file of pictures (default: data.train "
                        "of the run's config.yaml; without one the page shows no pictures)")
    parser.add_argument("--by", choices=("group", "sample"), default="group", help="count copies of one picture together, or "
                        "every row by itself (default: %(default)s)")
    parser.add_argument("--top", type=int, default=100, help="how many the page shows (default: %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="where page and CSV go (default: beside the ledger)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return program.run("memsieve view", make, parser.parse_args(argv))
