"""The timings: what they print, and that ours and Python's step, which are compared, are the same step."""
import json
import re
import shutil
import sys

import compare_python
import make_case
import pytest
import stub_gpu
import tiny
import yaml
from conftest import BUILD, ROOT, assert_refused, run, run_ok, torchrun

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


def test_a_run_that_exists_stands_in_no_ones_way(tmp_path):
    """Measuring writes nothing, so what the configuration's run folder holds is no matter, and stays as it is."""
    tiny.write_run(tmp_path)
    run_ok(BUILD / "trainer" / "memsieve-train", "--config", "run.yaml", cwd=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run_ok(STEP, "--config", "run.yaml", "--rounds", "1", "--steps", "1", cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_overhead_after_the_demo(tmp_path):
    """The three configurations by their names, as small runs whose folders are there already."""
    tiny.write_run(tmp_path)
    tiny.write_data(tmp_path / "train.h5", 40)
    (tmp_path / "configs").mkdir()
    for name in ("demo", "demo_published"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(tiny.YAML)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"run_id": "earlier"}')
    out = run_ok(BUILD / "bench" / "memsieve-bench-overhead", "--rounds", "1", "--steps", "1", cwd=tmp_path)
    assert {"plain_ms", "published", "ours"} <= set(json.loads(out.splitlines()[-1]))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@stub_gpu.needed
@pytest.mark.parametrize("rule", ["ours", "plain"])
def test_sync_check_behind_the_stand_in(tmp_path, rule):
    """Passes for our step. torch itself raises where a call waits: that its debug mode sees one is tested beside it."""
    tiny.write_run(tmp_path)
    settings = ["device=cuda", "max_nonfinite_steps=1000000", *(["filter=off"] if rule == "plain" else [])]
    words = [word for setting in settings for word in ("--set", setting)]
    result = run(STEP, "--config", "run.yaml", *words, "--sync-check", "3", cwd=tmp_path, **stub_gpu.environment())
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"steps": 3, "waits": 0}
    code = "import torch; x = torch.ones(3, device='cuda'); torch.cuda.set_sync_debug_mode('error'); x.sum().item()"
    result = run(sys.executable, "-c", code, **stub_gpu.environment())
    assert result.returncode == 1 and "synchronizing CUDA operation" in result.stderr


def test_sync_check_needs_a_gpu(tmp_path):
    tiny.write_run(tmp_path)
    assert_refused(run(STEP, "--config", "run.yaml", "--sync-check", "3", cwd=tmp_path), 2, "--sync-check needs a GPU")


def test_train_step_refuses(tmp_path):
    assert_refused(run(STEP), 2, "config")
    assert_refused(run(STEP, "--config", tmp_path / "none.yaml"), 2, "none.yaml")
    assert_refused(run(STEP, "--config", tmp_path / "none.yaml", "--rounds", "0"), 2, "--rounds")


def test_what_is_timed_has_steps_of_all_kinds(tmp_path, monkeypatch):
    """Every so many steps a batch has held-out and revisited rows, too: a round has whole turns of them."""
    sieve = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())["sieve"]
    turn = max(sieve["held_out"]["every"], sieve["revisit"]["every"])
    said = run_ok(BUILD / "bench" / "memsieve-bench-overhead", "--help")
    assert int(re.search(r"--steps arg \(=(\d+)\)", said)[1]) % turn == 0
    tiny.write_run(tmp_path)
    said = run_ok(STEP, "--config", "run.yaml", "--rounds", "1", cwd=tmp_path)
    assert json.loads(said.splitlines()[-1])["steps"] % turn == 0
    monkeypatch.syspath_prepend(ROOT / "bench" / "gpu_kit")
    import parts
    calls = []
    monkeypatch.setattr(parts, "call", lambda *command: calls.append(command) or [])
    monkeypatch.setattr(parts, "need_gpu", lambda why: None)
    for name in ("overhead", "train_step_sd15", "train_step_sdxl_lora"):
        parts.PARTS[name][0](False)
    steps = [command[command.index("--steps") + 1] for command in calls if "--steps" in command]
    assert len(steps) == 3 and all(count % turn == 0 for count in steps)


def test_a_demo_s_block_is_no_larger_than_a_batch(monkeypatch):
    commands = []
    monkeypatch.setattr(compare_python, "Worker", lambda *command: commands.append(command))
    case = {"batch": 4, "unet": "unet", "configs": {"ours": "demo.yaml", "published": "demo_published.yaml"}}
    for more in ({}, {"batch": 32}, {"made": "folder"}):
        compare_python.start_ours(case | more, "ours", 1.0, "no", "rows")
    found = [[word for word in command if str(word).startswith("sieve.block_rows")] for command in commands]
    assert found == [["sieve.block_rows=4"], ["sieve.block_rows=16"], []]


def test_made_cases_are_runs(tmp_path):
    run_ok(sys.executable, ROOT / "bench" / "make_case.py", "--unet", "sd15_quarter", "--latents", "8", "--batch", "2", "--out", tmp_path)
    for rule in ("plain", "published", "ours"):
        run_ok(BUILD / "trainer" / "memsieve-train", "--config", tmp_path / f"{rule}.yaml", "--dry-run")


def test_a_made_case_of_sdxl_is_a_run(tmp_path):
    """Of a few channels: the whole has 2.6 thousand million weights."""
    small = make_case.UNETS["sdxl"] | {"block_out_channels": [32, 64, 64], "cross_attention_dim": 16, "attention_head_dim": [1, 2, 2],
                                       "transformer_layers_per_block": [1, 1, 1], "addition_time_embed_dim": 8,
                                       "projection_class_embeddings_input_dim": 58}
    make_case.make(small, tmp_path, 8, 2)
    run_ok(STEP, "--config", tmp_path / "ours.yaml", "--set", "lora.rank=2", "--set", "sieve.reference.kind=none", "--rounds", "1",
           "--steps", "1")


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


def test_the_first_rows_where_samples_are_passed_over(tmp_path):
    """They are asked for before a step has run."""
    tiny.write_run(tmp_path)
    settings = "--config run.yaml --set sieve.action.pass_over=true --set sieve.revisit.rows=2"
    out = run_ok("bash", "-c", f"echo 2 | '{STEP}' {settings} --serve rows.safetensors", cwd=tmp_path)
    assert json.loads(out.splitlines()[-1])["loss"] > 0 and (tmp_path / "rows.safetensors").exists()


def test_python_overhead():
    """The loops in Python and C++ make the same calls, which the program checks; with a narrow UNet, so the shares say nothing here."""
    from diffusers import UNet2DConditionModel
    narrow = make_case.UNETS["sd15_quarter"] | {"block_out_channels": [16, 32, 64, 64]}
    gradients = len(list(UNet2DConditionModel.from_config(narrow).parameters()))
    words = ["--rounds", "2", "--steps", "100", "--whole-steps", "1", "--channels", "16"]
    out = json.loads(run_ok(sys.executable, ROOT / "bench" / "python_overhead.py", *words).splitlines()[-1])
    assert out["gradients"] == gradients and out["rounds"] == 2 and out["range"][0] <= out["overhead"] <= out["range"][1]
    assert min(out["cpp_ms"], out["python_ms"], out["step_ms"], out["passed_over"]) > 0
    assert_refused(run(BUILD / "bench" / "memsieve-bench-sieve-steps"), 2, "usage: memsieve-bench-sieve-steps RULE.yaml GRADIENTS")


def test_documented_commands_are_the_scripts():
    """Every form of scripts/bench.sh in docs/performance.md is one that the script knows."""
    forms = set(re.findall(r"scripts/bench\.sh ([a-z-]+)", (ROOT / "docs" / "performance.md").read_text()))
    script = (ROOT / "scripts" / "bench.sh").read_text()
    assert forms == {"overhead", "train-step", "compare-python", "python-overhead"}
    assert all(re.search(rf"^  {form}\) shift", script, re.MULTILINE) for form in forms)
