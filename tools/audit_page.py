#!/usr/bin/env python3
"""The page of an audit: FOLDER/page.html from the summary, the measurements and the pictures that memsieve-audit left there.

    audit_page.py runs/audit/detect
"""

import argparse
import sys
from pathlib import Path

from reports import program


def make(arguments):
    from reports import audit
    from reports.files import replace_file
    folder = Path(arguments.folder)
    page = audit.render(audit.Audit.read(folder), arguments.top)
    replace_file(folder / "page.html", page.encode())
    print(f"{folder / 'page.html'}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="--out of memsieve-audit")
    parser.add_argument("--top", type=int, default=100, help="how many prompts the page shows (default: %(default)s)")
    return program.run("audit_page", make, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
