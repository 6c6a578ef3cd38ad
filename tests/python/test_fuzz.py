"""The fuzz targets for five seconds each, and what scripts/fuzz.sh makes of a crash. docs/reliability.md has longer runs' figures."""
import importlib.util
import re
import shutil
import stat
import sys

import pytest
from conftest import ROOT, run

spec = importlib.util.spec_from_file_location("fuzz_run", ROOT / "tests" / "fuzz" / "run.py")
fuzz_run = importlib.util.module_from_spec(spec)
sys.modules["fuzz_run"] = fuzz_run
spec.loader.exec_module(fuzz_run)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The table's lines, of all targets."""
    if shutil.which("clang++") is None:
        pytest.skip("needs clang")
    done = run(ROOT / "scripts" / "fuzz.sh", "--seconds", 5, "--jobs", 2, "--corpus", tmp_path_factory.mktemp("corpus"), timeout=800)
    found = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \|$", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return {name: (*(int(n.replace(",", "")) for n in numbers), done.stderr) for name, *numbers in found}


@pytest.mark.parametrize("target", fuzz_run.TARGETS)
def test_no_input_makes_it_crash(lines, target):
    inputs, coverage, crashes, said = lines[target]
    assert crashes == 0, said
    assert inputs > 50 and coverage > 20


def program(path, body):
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# What libFuzzer does: it says what was wrong, keeps the input and ends with another code than 0.
CRASH = """for word; do case $word in -artifact_prefix=*) echo input >"${word#*=}crash-$RANDOM" ;; esac; done
echo '==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1' >&2
echo '#2 INITED cov: 12 ft: 13' >&2
echo 'stat::number_of_executed_units: 30' >&2
sleep 0.3
exit 1"""


def test_crashes_are_counted_kept_and_make_the_exit_code(tmp_path, capsys):
    crashing = program(tmp_path / "crashing", CRASH)
    outcome = fuzz_run.fuzz(crashing, [], tmp_path / "crashes", 1, 0, leaks=False)
    assert 2 <= len(outcome.crashes) <= 4 and outcome.inputs == 30 * len(outcome.crashes) and outcome.coverage == 12
    assert {path for _, path in outcome.crashes} == {str(path) for path in (tmp_path / "crashes").glob("crash-*")}
    assert fuzz_run.report({"crashing": outcome}) == 1
    printed = capsys.readouterr()
    assert f"| crashing | {outcome.inputs} | 12 | {len(outcome.crashes)} |" in printed.out
    assert "heap-buffer-overflow" in printed.err and "crashes/crash-" in printed.err


def test_an_input_that_took_long_counts_only_if_it_does_again(tmp_path, capsys):
    again = 'case "${!#}" in *timeout-*) exit %d ;; esac\n'
    outcomes = [fuzz_run.fuzz(program(tmp_path / name, again % code + CRASH.replace("crash-", "timeout-")), [], tmp_path / name.upper(), 1, 0,
                              leaks=False) for name, code in (("slow", 1), ("quick", 0))]
    assert len(outcomes[0].crashes) >= 2 and outcomes[0].halts == 0
    assert not outcomes[1].crashes and outcomes[1].halts >= 2 and {path.name for path in (tmp_path / "QUICK").iterdir()} == {"log"}
    assert fuzz_run.report({"quick": outcomes[1]}) == 0 and f"halted {outcomes[1].halts} times" in capsys.readouterr().err


def test_a_target_that_takes_no_input_is_a_failure(tmp_path):
    assert fuzz_run.report({"idle": fuzz_run.fuzz(program(tmp_path / "idle", "exit 0"), [], tmp_path / "crashes", 1, 0, leaks=False)}) == 1


def test_what_a_target_writes_beside_itself_goes_with_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writing = program(tmp_path / "writing", 'echo x > elsewhere && echo "stat::number_of_executed_units: 1" >&2')
    assert fuzz_run.fuzz(writing, [], tmp_path / "crashes", 1, 0, leaks=False).inputs == 1
    assert {path.name for path in tmp_path.iterdir()} == {"writing", "crashes"}


@pytest.mark.parametrize("arguments", [["--what"], ["no_such_target"]])
def test_a_wrong_word_is_refused(arguments):
    result = run(ROOT / "scripts" / "fuzz.sh", *arguments)
    assert result.returncode == 2 and (arguments[0] in result.stderr)


def test_without_clang_it_says_how_to_get_it(tmp_path):
    for name in ("bash", "dirname", "basename", "nproc"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = run(shutil.which("bash"), ROOT / "scripts" / "fuzz.sh", PATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == ("fuzz.sh: clang++ is missing, which libFuzzer comes with; run: apt-get install clang "
                                     "libclang-rt-dev")
