"""scripts/wheel.sh makes a wheel that works in an empty environment outside the tree."""
from conftest import ROOT, assert_refused, run


def test_the_wheel_works_outside_the_tree(tmp_path):
    result = run(ROOT / "scripts" / "wheel.sh", tmp_path, timeout=850)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "abi         fits: a step of two rows came out right" in result.stdout
    assert "memsieve 0.2.0 of /" in result.stdout and [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_options():
    assert_refused(run(ROOT / "scripts" / "wheel.sh", "--what"), 1, "unknown option '--what'; usage: scripts/wheel.sh [FOLDER]")
