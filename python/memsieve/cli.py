"""The command `memsieve`.

    memsieve check                    what was found: torch, CUDA, HDF5, how the module was built
    memsieve prepare --images ...     pictures and captions to a data set
    memsieve view RUN                 what a run dropped: a page, and a CSV file
    memsieve report --off A --on B    a run without the filter beside one with it
    memsieve audit ...                the C++ program memsieve-audit, if it is installed
    memsieve train --config ...       the C++ program memsieve-train, if it is installed

`memsieve COMMAND --help` shows what a command takes. Exit codes are the commands' own; 2 = wrong usage.
"""
import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
SCRIPTS = {"prepare": "prepare_dataset.py", "view": "ledger_view.py", "report": "report.py"}
PROGRAMS = {"audit": "memsieve-audit", "train": "memsieve-train"}


def program(name):
    """The path of a C++ program: in the folder that MEMSIEVE_BUILD names, beside this Python, or on the PATH; None if it is nowhere."""
    build = os.environ.get("MEMSIEVE_BUILD")
    folders = [*([Path(build) / place for place in ("trainer", "audit", "bin")] if build else []), Path(sys.executable).parent,
               *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    return next((folder / name for folder in folders if os.access(folder / name, os.X_OK) and (folder / name).is_file()), None)


def refuse(line):
    print(f"memsieve: {line}", file=sys.stderr)
    return 2


def run(command):
    try:
        return subprocess.run([str(word) for word in command], check=False).returncode
    except KeyboardInterrupt:
        return 130


def start(command, words):
    if command in SCRIPTS:
        script = TOOLS / SCRIPTS[command]
        return run([sys.executable, script, *words]) if script.exists() else refuse(f"{script} is missing; install the package again")
    path = program(PROGRAMS[command])
    if path is None:
        return refuse(f"the program {PROGRAMS[command]} was not found; build it (scripts/build.sh) and name the build folder in "
                      "MEMSIEVE_BUILD, or put it on the PATH")
    return run([path, *words])


def main(argv=None):
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if words else 2
    if command in SCRIPTS or command in PROGRAMS:
        return start(command, words[1:])
    if command == "--version":
        from memsieve._build import VERSION
        print(f"memsieve {VERSION}")
        return 0
    if command == "check":
        from memsieve.check import main as check
        return check()
    return refuse(f"unknown command '{command}'; there are check, {', '.join((*SCRIPTS, *PROGRAMS))}")
