"""The shell scripts: how tests are counted, and what they refuse."""
import json
import os
import shutil
import sys

import pytest
from conftest import ROOT, assert_refused, run

LOG = """Start testing: Nov 23 05:00 UTC
----------------------------------------------------------
{entries}End testing: Nov 23 05:01 UTC
"""
ENTRY = """{number}/9 Testing: {name}
{number}/9 Test: {name}
Command: "{command}"
Directory: /somewhere
"{name}" start time: Nov 23 05:00 UTC
Output:
----------------------------------------------------------
{output}
<end of output>
Test time =   1.00 sec
----------------------------------------------------------
{verdict}
"{name}" end time: Nov 23 05:00 UTC
"{name}" time elapsed: 00:00:01
----------------------------------------------------------

"""
OUTPUTS = {
    "catch_good": ("=====\nAll tests passed (31 assertions in 7 test cases)\n", "Test Passed."),
    "catch_bad": ("=====\ntest cases: 5 | 3 passed | 2 failed\nassertions: 9 | 7 passed | 2 failed\n", "Test Failed."),
    "pytest_good": ("....  [100%]\n4 passed in 0.31s\n", "Test Passed."),
    "pytest_bad": ("FAILED test_x.py::test_y\n2 failed, 3 passed, 1 skipped, 1 error in 1.02s\n", "Test Failed."),
    "pytest_long": ("12 passed, 2 warnings in 71.52s (0:01:11)\n", "Test Passed."),
    "crash": ("Segmentation fault\n", "Test Failed."),
    "crash_after_totals": ("All tests passed (3 assertions in 2 test cases)\nAddressSanitizer: heap-use-after-free\n", "Test Failed."),
    "plain": ("hello\n", "Test Passed."),
    "not_built": ("", "Test Passed."),  # what ctest 3.25 writes when there is no such program
}


def count(tmp_path, *names):
    entries = "".join(ENTRY.format(number=i + 1, name=name, command="" if name == "not_built" else f"/somewhere/{name}",
                                   output=OUTPUTS[name][0], verdict=OUTPUTS[name][1])
                      for i, name in enumerate(names))
    (tmp_path / "LastTest.log").write_text(LOG.format(entries=entries))
    result = run(sys.executable, ROOT / "scripts" / "count_tests.py", tmp_path / "LastTest.log")
    return result.stdout.splitlines()[-1], result.returncode


@pytest.mark.parametrize("name, line, code", [
    ("catch_good", "7 passed, 0 failed", 0),
    ("catch_bad", "3 passed, 2 failed", 1),
    ("pytest_good", "4 passed, 0 failed", 0),
    ("pytest_bad", "3 passed, 3 failed", 1),
    ("pytest_long", "12 passed, 0 failed", 0),
    ("crash", "0 passed, 1 failed", 1),
    ("crash_after_totals", "2 passed, 1 failed", 1),
    ("plain", "1 passed, 0 failed", 0),
    ("not_built", "0 passed, 1 failed", 1),
])
def test_count(tmp_path, name, line, code):
    assert count(tmp_path, name) == (line, code)


def test_count_adds_up(tmp_path):
    assert count(tmp_path, *OUTPUTS) == ("32 passed, 8 failed", 1)


def test_count_of_no_test_is_a_failure(tmp_path):
    assert count(tmp_path) == ("0 passed, 1 failed", 1)


def test_demo_keeps_what_is_not_its_own(tmp_path):
    (tmp_path / "precious").write_text("")
    result = run(ROOT / "scripts" / "demo.sh", "--out", tmp_path)
    assert result.returncode != 0 and "not made by this script" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("script, arguments", [("demo.sh", ["--seed", "x"]), ("demo.sh", ["--what"]), ("bench.sh", []), ("bench.sh", ["what"]),
                                               ("bench.sh", ["train-step", "--what"]), ("bench.sh", ["detection", "--what"]),
                                               ("bench.sh", ["detection", "--seed"]), ("test.sh", ["--what"]),
                                               ("setup.sh", ["--what"]), ("format.sh", ["--what"])])
def test_unknown_options(script, arguments):
    result = run(ROOT / "scripts" / script, *arguments)
    assert result.returncode != 0 and result.stderr


STUBS = {
    "dpkg-query": "echo unknown",
    "sudo": '"$@"',
    # Ends only once pip has begun.
    "apt-get": '''case "$*" in *install*) for i in $(seq 100); do [ -e "$STUBS/pip-began" ] && exit 0; sleep 0.1; done; exit 1 ;; esac''',
    "base-python": '''[ "$1" != -m ] || { mkdir -p "$3/bin" && cp "$STUBS/environment-python" "$3/bin/python"; }''',
    "environment-python": 'touch "$STUBS/pip-began"; [ ! -e "$STUBS/broken" ] || { echo "ERROR: no such wheel"; exit 1; }',
}


def set_up(tmp_path, **stubs):
    for name, body in (STUBS | stubs).items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return run(ROOT / "scripts" / "setup.sh", PATH=f"{tmp_path}:{os.environ['PATH']}", STUBS=str(tmp_path),
               MEMSIEVE_VENV=str(tmp_path / "venv"), MEMSIEVE_BASE_PYTHON=str(tmp_path / "base-python"))


def test_packages_of_both_kinds_are_installed_at_once(tmp_path):
    result = set_up(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "setup: ready" in result.stdout and (tmp_path / "venv" / "memsieve-stamp").exists()


def test_a_python_package_that_cannot_be_installed_is_one_line(tmp_path):
    (tmp_path / "broken").touch()
    assert_refused(set_up(tmp_path), 1, "installing Python packages failed: ERROR: no such wheel")


def test_without_the_word_error_the_last_line_is_the_reason(tmp_path):
    stub = STUBS["environment-python"].replace("ERROR: no such wheel", "a password is required")
    (tmp_path / "broken").touch()
    assert_refused(set_up(tmp_path, **{"environment-python": stub}), 1, "installing Python packages failed: a password is required")


def stopped_demo(folder, finished):
    for name in ("off", "on"):
        (folder / name / "checkpoints" / "step-000100").mkdir(parents=True)
        (folder / name / "run.json").write_text(json.dumps({"run_id": name} | ({"finished_steps": 100} if name in finished else {})))


@pytest.mark.parametrize("finished, stopped", [((), "off"), (("off",), "on")])
def test_a_demo_that_was_stopped_is_not_audited(tmp_path, finished, stopped):
    stopped_demo(tmp_path, finished)
    result = run(ROOT / "scripts" / "audit.sh", "--demo", tmp_path)
    assert_refused(result, 1, f"{tmp_path}/{stopped} was stopped before its end", "scripts/demo.sh")
    assert not (tmp_path / "audit").exists()


def test_checkpoints_that_are_being_written_are_none(tmp_path):
    stopped_demo(tmp_path, ("off", "on"))
    checkpoints = tmp_path / "on" / "checkpoints"
    (checkpoints / "step-000100").rename(checkpoints / "step-000200.tmp")
    assert_refused(run(ROOT / "scripts" / "audit.sh", "--demo", tmp_path), 1, "holds no demo with checkpoints")


def bench_sh(folder, *words):
    """What scripts/bench.sh starts, in a tree where nothing need be installed or built."""
    stub = '#!/bin/bash\n[[ $0 != */memsieve-bench-* ]] || echo "$@"\n'
    for name in ("scripts/setup.sh", "scripts/build.sh", "venv/bin/python", "build/release/bench/memsieve-bench-train-step"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stub)
        path.chmod(0o755)
    for name in ("bench.sh", "common.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    return run(folder / "scripts" / "bench.sh", *words, MEMSIEVE_VENV=str(folder / "venv"))


@pytest.mark.parametrize("batch, block", [(8, "--set sieve.block_rows=8 "), (16, ""), (64, "")])
def test_a_block_is_no_larger_than_what_a_process_sees(tmp_path, batch, block):
    result = bench_sh(tmp_path, "train-step", "--batch", batch)
    assert result.stdout == f"--config configs/demo.yaml --set train_batch_size={batch} {block}".rstrip() + "\n", result.stderr


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    assert_refused(bench_sh(tmp_path, "train-step", "--batch", 3, "--processes", 2), 1, "--batch 3", "--processes 2")
    assert_refused(bench_sh(tmp_path, "train-step", "--processes", 3), 1, "--batch 32", "--processes 3")


@pytest.mark.parametrize("arguments", [["--what"], ["--out"], ["--python-version"]])
def test_gpu_kit_refuses(arguments):
    result = run(ROOT / "scripts" / "gpu_kit.sh", *arguments)
    assert result.returncode == 2 and "--python-version X.Y" in result.stderr


def test_builds_use_all_cores_whatever_the_tests_threads_are():
    def jobs(**environment):
        return run("bash", "-c", f"source {ROOT}/scripts/common.sh; cores", **environment).stdout

    assert jobs(OMP_NUM_THREADS="1") == jobs(OMP_NUM_THREADS="64") != ""
