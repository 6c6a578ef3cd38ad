"""python -m memsieve out of the source tree, where there is no compiled module."""
import re
import sys

import pytest
from conftest import ROOT, assert_refused, run, run_ok

SOURCES = {"PYTHONPATH": str(ROOT / "python")}
MEMSIEVE = (sys.executable, "-m", "memsieve")


def test_commands_load_neither_torch_nor_the_module():
    said = run_ok(sys.executable, "-c", """
import importlib, sys
from memsieve import cli, ledger
for module in cli.MODULES.values():
    importlib.import_module(f"memsieve.commands.{module}")
print(sorted(name for name in sys.modules if name in ("torch", "memsieve._core", "diffusers", "pandas", "matplotlib")))
""", **SOURCES)
    assert said == "[]\n"


def test_every_command_is_listed_and_shows_what_it_takes():
    said = run_ok(*MEMSIEVE, "--help", **SOURCES)
    listed = set(re.findall(r"^    memsieve ([a-z-]+)", said, re.M)) - {"--version"}
    from memsieve import cli
    assert listed == {*cli.MODULES, *cli.PROGRAMS}
    for command in cli.MODULES:
        assert run_ok(*MEMSIEVE, command, "--help", **SOURCES).startswith(f"usage: memsieve {command} ")


@pytest.mark.parametrize("words, code, said", [
    (["nothing"], 2, ["memsieve: unknown command 'nothing'", "prepare, view"]),
    (["--version"], 2, ["compiled module is not in", "pip install ."]),
    (["view", "nowhere"], 3, ["memsieve view: nowhere: ", "no such file"]),
    (["report", "--off", "nowhere", "--on", "nowhere"], 3, ["memsieve report: nowhere", "no such run folder"]),
    (["audit-page", "nowhere"], 3, ["memsieve audit-page: nowhere", "summary.json"]),
])
def test_mistakes_end_in_one_line(tmp_path, words, code, said):
    assert_refused(run(*MEMSIEVE, *words, cwd=tmp_path, **SOURCES), code, *said)


def test_what_needs_the_module_says_that_it_is_not_there():
    result = run(sys.executable, "-c", """
import memsieve
assert issubclass(memsieve.DataError, memsieve.Error)
try:
    memsieve.Sieve
except ImportError as error:
    print(error)
from memsieve import Sieve
""", **SOURCES)
    assert result.returncode == 1 and "pip install ." in result.stdout and result.stdout.count("\n") == 1, result.stdout
    assert result.stderr.splitlines()[-1] == f"ImportError: {result.stdout.strip()}"
    checked = run(*MEMSIEVE, "check", **SOURCES)
    assert (checked.returncode, checked.stdout) == (1, result.stdout)


def test_a_package_that_is_missing_is_named(tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ModuleNotFoundError(\"No module named 'jinja2'\", name='jinja2')\n")
    (tmp_path / "ledger.h5").write_bytes(b"")
    result = run(*MEMSIEVE, "view", tmp_path, PYTHONPATH=f"{ROOT / 'python'}:{tmp_path}")
    assert_refused(result, 2, "memsieve: view: needs the package jinja2; pip install 'SOURCES[tools]'")


@pytest.mark.parametrize("command, folder", [("train", "trainer"), ("audit", "audit")])
def test_programs_are_looked_for_and_started(tmp_path, command, folder):
    assert_refused(run(*MEMSIEVE, command, MEMSIEVE_BUILD=str(tmp_path), PATH=str(tmp_path), **SOURCES), 2,
                   f"the program memsieve-{command} was not found")
    program = tmp_path / folder / f"memsieve-{command}"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho \"got $*\"; exit 7\n")
    program.chmod(0o755)
    result = run(*MEMSIEVE, command, "--config", "run.yaml", MEMSIEVE_BUILD=str(tmp_path), **SOURCES)
    assert (result.returncode, result.stdout) == (7, "got --config run.yaml\n")
