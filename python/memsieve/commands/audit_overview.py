"""One page and one JSON file of all audits that scripts/audit.sh makes of the demo's models.

    memsieve audit-overview --audits runs/demo/audit --out runs/demo       writes OUT/audit.html and OUT/audit.json
    memsieve audit-overview --ordinary-magnitude runs/demo/audit/detect_off    prints the median first-step magnitude of the negatives
"""

import argparse
import json
import statistics
from pathlib import Path

from memsieve.reports import program


def ordinary_magnitude(folder):
    from memsieve.reports import audit
    rows = [row for row in audit.Audit.read(folder).rows if row.get("set") == "negatives" and "magnitude" in row]
    if not rows:
        raise program.InputError(f"{folder}: no negatives were measured there; run memsieve-audit detect with --negatives")
    print(f"{statistics.median(row['magnitude'][0] for row in rows):.4g}")


def make(arguments):
    if arguments.ordinary_magnitude:
        ordinary_magnitude(arguments.ordinary_magnitude)
        return
    from memsieve.reports import audit_overview
    from memsieve.reports.files import replace_file
    out = Path(arguments.out)
    overview = audit_overview.Overview.read(Path(arguments.audits))
    replace_file(out / "audit.json", (json.dumps(overview.figures(), indent=2) + "\n").encode())
    replace_file(out / "audit.html", overview.page().encode())
    for name, value in overview.figures().items():
        if not isinstance(value, dict):
            print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    print(out / "audit.html")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="memsieve audit-overview", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ordinary-magnitude", metavar="FOLDER", help="of detect: print this figure and do nothing else")
    parser.add_argument("--audits", help="folder with the audits' folders")
    parser.add_argument("--out", help="folder to write to")
    arguments = parser.parse_args(argv)
    if not arguments.ordinary_magnitude and not (arguments.audits and arguments.out):
        parser.error("name --audits and --out, or --ordinary-magnitude")
    return program.run("memsieve audit-overview", make, arguments)
