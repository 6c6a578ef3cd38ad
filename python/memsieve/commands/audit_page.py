"""The page of an audit: FOLDER/page.html from the summary, the measurements and the pictures that memsieve-audit left there.

    memsieve audit-page runs/audit/detect
"""

import argparse
from pathlib import Path

from memsieve.reports import program


def make(arguments):
    from memsieve.reports import audit
    from memsieve.reports.files import replace_file
    folder = Path(arguments.folder)
    page = audit.render(audit.Audit.read(folder), arguments.top)
    replace_file(folder / "page.html", page.encode())
    print(f"{folder / 'page.html'}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="memsieve audit-page", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="--out of memsieve-audit")
    parser.add_argument("--top", type=int, default=100, help="how many prompts the page shows (default: %(default)s)")
    return program.run("memsieve audit-page", make, parser.parse_args(argv))
