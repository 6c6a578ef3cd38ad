"""The command `memsieve`.

    memsieve prepare --images ...     pictures and captions to a data set
    memsieve train --config ...       the C++ program memsieve-train, if it is installed
    memsieve view RUN                 what a run dropped: a page, and a CSV file
    memsieve report --off A --on B    a run without the filter beside one with it

    memsieve prompts --prompts ...    prompts for an audit
    memsieve audit ...                the C++ program memsieve-audit, if it is installed
    memsieve audit-page FOLDER        the page of an audit, where memsieve-audit could not make it
    memsieve audit-overview ...       one page of the audits of scripts/audit.sh
    memsieve canaries plant|check     canaries in training data
    memsieve coating coat|measure     a mark in pictures

    memsieve check                    what was found: torch, CUDA, HDF5, how the module was built
    memsieve --version

`memsieve COMMAND --help` shows what a command takes. Exit codes are the commands' own; 2 = wrong usage.
"""
import importlib
import os
import subprocess
import sys
from pathlib import Path

MODULES = {"prepare": "prepare_dataset", "view": "ledger_view", "report": "report", "prompts": "prepare_prompts",
           "audit-page": "audit_page", "audit-overview": "audit_overview", "canaries": "plant_canaries", "coating": "coat_pictures",
           "check": "check"}
PROGRAMS = {"train": "memsieve-train", "audit": "memsieve-audit"}


def program(name):
    """The path of a C++ program: in the folder that MEMSIEVE_BUILD names, beside this Python, or on the PATH; None if it is nowhere."""
    build = os.environ.get("MEMSIEVE_BUILD")
    folders = [*([Path(build) / place for place in ("trainer", "audit", "bin")] if build else []), Path(sys.executable).parent,
               *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    return next((folder / name for folder in folders if os.access(folder / name, os.X_OK) and (folder / name).is_file()), None)


def refuse(line):
    print(f"memsieve: {line}", file=sys.stderr)
    return 2


def run_module(command, words):
    try:
        return importlib.import_module(f"memsieve.commands.{MODULES[command]}").main(words)
    except ModuleNotFoundError as error:
        return refuse(f"{command}: needs the package {error.name}; pip install 'SOURCES[tools]' installs all that the commands need, with SOURCES "
                      "the folder of memsieve's pyproject.toml")
    except ImportError as error:
        return refuse(f"{command}: {error}")


def run_program(command, words):
    path = program(PROGRAMS[command])
    if path is None:
        return refuse(f"the program {PROGRAMS[command]} was not found; build it (scripts/build.sh) and name the build folder in "
                      "MEMSIEVE_BUILD, or put it on the PATH")
    return subprocess.run([str(path), *words], check=False).returncode


def version():
    from memsieve import _abi
    try:
        print(f"memsieve {_abi.build().VERSION}")
    except ImportError as error:
        return refuse(str(error))
    return 0


def main(argv=None):
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if words else 2
    if command == "--version":
        return version()
    if command not in MODULES and command not in PROGRAMS:
        return refuse(f"unknown command '{command}'; there are {', '.join((*MODULES, *PROGRAMS))}")
    try:
        return (run_module if command in MODULES else run_program)(command, words[1:])
    except KeyboardInterrupt:
        return 130
