"""The timings: what they print, and that ours and Python's step, which are compared, are the same step."""
import json
import re
import shutil
import sys

import pytest
import tiny
import yaml
from conftest import BUILD, ROOT, assert_refused, run, run_ok, torchrun

sys.path.insert(0, str(ROOT / "bench"))
import compare_python  # noqa: E402

STEP = BUILD / "bench" / "memsieve-bench-train-step"
PUBLISHED = {"filters": {"magnitude": {"norm": "l2", "scale": "linear"}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
             "threshold": {"kind": "fixed", "drop": 2.0}, "probe": {"kind": "every"}}


@pytest.mark.parametrize("processes", [1, 2])
def test_train_step(tmp_path, processes):
    tiny.write_run(tmp_path)
    command = [STEP, "--config", "run.yaml", "--rounds", "2", "--steps", "2", "--set", "use_ema=true"]
    result = run(*command, cwd=tmp_path) if processes == 1 else torchrun(processes, *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout.splitlines()[-1])
    assert out["processes"] == processes and out["batch"] == 4 * processes and out["device"] == "cpu"
    assert list(out["parts_ms"]) == ["data", "forward", "probe", "backward", "reduce", "optimiser"]
    assert all(ms > 0 for ms in out["parts_ms"].values())
    assert 0.5 * out["step_ms"] < sum(out["parts_ms"].values()) < 1.5 * out["step_ms"]
    assert out["images_per_s"] == pytest.approx(1000 * out["batch"] / out["step_ms"])
    assert 50 < out["peak_rss_mib"] < 5000 and out["peak_gpu_mib"] is None
    assert not (tmp_path / "run").exists()


def test_train_step_refuses(tmp_path):
    assert_refused(run(STEP), 2, "config")
    assert_refused(run(STEP, "--config", tmp_path / "none.yaml"), 2, "none.yaml")
    assert_refused(run(STEP, "--config", tmp_path / "none.yaml", "--rounds", "0"), 2, "--rounds")


def test_made_cases_are_runs(tmp_path):
    run_ok(sys.executable, ROOT / "bench" / "make_case.py", "--unet", "sd15_quarter", "--latents", "8", "--batch", "2", "--out", tmp_path)
    for rule in ("plain", "published", "ours"):
        run_ok(BUILD / "trainer" / "memsieve-train", "--config", tmp_path / f"{rule}.yaml", "--dry-run")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_ours_and_python_make_the_same_step(tmp_path, precision):
    tiny.write_run(tmp_path)
    (tmp_path / "unet.json").write_text(json.dumps(tiny.UNET | {"sample_size": 4}))
    config = yaml.safe_load(tiny.YAML) | {"sieve": PUBLISHED}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(config))
    for name in ("train.h5", "held_out.h5"):
        text = (tmp_path / "published.yaml").read_text()
        (tmp_path / "published.yaml").write_text(text.replace(name, str(tmp_path / name)))
    case = {"name": "tiny", "batch": 8, "configs": {"published": str(tmp_path / "published.yaml")}, "made": str(tmp_path),
            "data": str(tmp_path / "train.h5"), "learning_rate": 0.001, "unet": str(tmp_path / "unet"),
            "prediction_type": "v_prediction"}
    loop = compare_python.Loop(case, precision, compiled=False)
    shutil.copytree(tmp_path / "unet", tmp_path / "start")
    ours = compare_python.start_ours(case | {"unet": str(tmp_path / "start")}, "published", loop.threshold, precision,
                                     tmp_path / "rows.safetensors")
    try:
        assert ours.answer(60) == {}
        found, expected = ours.ask(1, seconds=60), loop.check(tmp_path / "rows.safetensors", loop.threshold)
    finally:
        ours.end()
    assert 0 < expected["dropped"] < 8
    allowed = {"loss": 1e-5, "grad_norm": 1e-4} if precision == "no" else compare_python.tolerances(precision, "cpu")
    for key, tolerance in allowed.items():
        assert found[key] == pytest.approx(expected[key], rel=tolerance), key
    assert loop.steps(True, 2)["wall_ms"] > 0


def test_documented_commands_are_the_scripts():
    """Every form of scripts/bench.sh in docs/performance.md is one that the script knows."""
    forms = set(re.findall(r"scripts/bench\.sh ([a-z-]+)", (ROOT / "docs" / "performance.md").read_text()))
    script = (ROOT / "scripts" / "bench.sh").read_text()
    assert forms == {"overhead", "train-step", "compare-python"}
    assert all(re.search(rf"^  {form}\) shift", script, re.MULTILINE) for form in forms)
