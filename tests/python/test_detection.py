"""The detection benchmark: its data sets, and a run that is made once and gone on with."""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import demo_sources as sources
import fake_sources
import h5py
import make_demo_data as maker
import numpy as np
import pytest
import tiny
from conftest import BUILD, ROOT, clean_environment
from detection import __main__ as program
from detection import pictures, plan, rules, runs, scenarios
from detection.pictures import Recipe
from detection.scenarios import Scenario
from memsieve import hdf5_rows
from memsieve.reports.program import InputError

# ---- the data sets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def studio(monkeypatch, tmp_path):
    """Makes sets of made-up pictures."""
    pairs = [sources.Pair(fake_sources.clear_picture(i), f"an emoji of red thing {i}", "emoji") for i in range(90)]
    fake_sources.use_fakes(monkeypatch, tmp_path, {**fake_sources.SIZES, "NEW": 40}, pairs, width=8)
    monkeypatch.setattr(pictures, "RESERVED", 6)
    monkeypatch.setattr(maker, "clear_pictures", lambda pairs, lengths: (np.arange(len(pairs)) % 4 > 0, np.zeros((len(pairs),) * 2)))
    return pictures.Studio(*(str(tmp_path / name) for name in ("font", "font", "stamps")))


SMALL = Recipe(repeated=3, least=4, most=6, new=10, replayed=8)


def groups_of(path, repeated=None):
    with h5py.File(path) as file:
        group, truth = file["group_id"][:], file["repeated"][:].astype(bool)
    return group if repeated is None else group[truth == repeated]


def test_repeated_pictures_are_unseen_and_apart_from_those_to_tune_on(studio, tmp_path):
    """Invariants over several draws: rows for each picture, and who may be repeated, against the demo's own split."""
    pairs = studio.pictures.pairs
    parts = maker.split(pairs, studio.pictures.lengths, pictures.SPLIT)
    tuned, reported = set(), set()
    for seed in range(4):
        for aside in (False, True):
            folder = tmp_path / f"{seed}-{aside}"
            assert studio.make(replace(SMALL, seed=seed, reserved=aside), folder)
            repeated, ordinary = groups_of(folder / "mix.h5", True), groups_of(folder / "mix.h5", False)
            numbers, counts = np.unique(repeated, return_counts=True)
            assert len(numbers) == 3 and counts.min() >= 4 and counts.max() <= 6
            assert len(ordinary) == 18 and len(set(ordinary)) == 18 and not set(ordinary) & set(numbers)
            assert set(numbers) <= set(parts["new"]) - set(parts["shown"])
            assert len(set(ordinary) & set(parts["base"])) == 8
            other = {*groups_of(folder / "held_out.h5"), *groups_of(folder / "validation.h5")}
            assert not other & {*repeated, *ordinary}
            assert list(groups_of(folder / "prompts.h5")) == [*groups_of(folder / "prompts.h5", True), *parts["shown"]]
            (tuned if aside else reported).update(numbers)
    assert len(reported) > 3 and len(tuned) > 3 and not tuned & reported


def test_two_benchmarks_that_want_one_set_make_it_once(studio, tmp_path):
    """A run reads the files that the first has made: they must not be replaced under it."""
    with ThreadPoolExecutor() as several:
        assert sum(several.map(lambda _: studio.make(SMALL, tmp_path / "set"), range(4))) == 1


def test_a_set_is_made_once_and_the_same_again(studio, tmp_path):
    assert studio.make(SMALL, tmp_path / "set")
    assert not studio.make(SMALL, tmp_path / "set")
    assert studio.make(SMALL, tmp_path / "same")
    for name in pictures.FILES:
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    assert studio.make(replace(SMALL, most=7), tmp_path / "set")


def test_near_copies_differ_and_are_all_targets(studio, tmp_path):
    assert studio.make(replace(SMALL, near=True, least=12, most=12), tmp_path / "near")
    with h5py.File(tmp_path / "near/mix.h5") as mix, h5py.File(tmp_path / "near/targets.h5") as targets, \
            h5py.File(tmp_path / "near/prompts.h5") as prompts:
        truth = mix["repeated"][:].astype(bool)
        seen = {image.tobytes() for image in mix["images"][:][truth]}
        assert len(seen) > 30  # of 36: hardly two are alike
        of_repeated = targets["repeated"][:].astype(bool)
        assert seen == {image.tobytes() for image in targets["images"][:][of_repeated]}
        assert np.array_equal(np.bincount(targets["group_id"][:]), [12] * 5)  # the ordinary prompts have as many
        captions = {caption for caption, repeated in zip(hdf5_rows.read_texts(mix, "caption"), truth) if repeated}
        assert len(captions) > 6 and {*hdf5_rows.read_texts(prompts, "caption")[:3]} <= captions


def test_views_keep_their_group_and_held_out_rows_are_views(studio, tmp_path):
    assert studio.make(replace(SMALL, views=3), tmp_path / "views") and studio.make(SMALL, tmp_path / "plain")
    assert set(np.unique(groups_of(tmp_path / "views/mix.h5", False), return_counts=True)[1]) == {3}
    with h5py.File(tmp_path / "views/held_out.h5") as views, h5py.File(tmp_path / "plain/held_out.h5") as plain:
        assert np.array_equal(views["group_id"][:], plain["group_id"][:])
        assert not np.array_equal(views["images"][:], plain["images"][:])


# ---- runs --------------------------------------------------------------------------------------------------------------

STEPS = 150
TINY = """from detection import runs, scenarios
scenarios.SCENARIOS["a"] = scenarios.Scenario("a", "tiny", None, {steps}, {{"validation.every": 50}}, base="", draw_every=50)
runs.CHECKPOINTS = 25
"""


def write_pictures(path, rows, seed, repeated=0):
    """Rows of random pictures of which the first `repeated` are alike."""
    tiny.write_data(path, rows, seed)
    with h5py.File(path, "r+") as file:
        file["repeated"] = (np.arange(rows) < repeated).astype(np.uint8)
        for name in ("images", "text"):
            values = file[name][:]
            values[:repeated] = values[:1]
            file[name][:] = values


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A tree with a scenario `a` that trains in a few seconds."""
    for folder in ("configs", "data/demo", "docs", "build"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "build/release").symlink_to(BUILD)
    write_pictures(tmp_path / "data/demo/mix.h5", 64, 1, 16)
    write_pictures(tmp_path / "data/demo/prompts.h5", 3, 1, 1)
    for name in ("held_out", "validation"):
        write_pictures(tmp_path / f"data/demo/{name}.h5", 8, 2)
    (tmp_path / "unet.json").write_text(json.dumps(tiny.UNET))
    text = tiny.YAML.replace("unet.json", str(tmp_path / "unet.json"))
    text = text.replace("sieve:", "sampling: {num_inference_steps: 4, guidance_scale: 2}\ntensorboard: false\nsieve:")
    (tmp_path / "configs/demo.yaml").write_text(text)
    # A fixed low level for the free signal: some visits are dropped.
    (tmp_path / "configs/default.yaml").write_text(
        "sieve:\n  filters:\n    prediction_error: {scale: linear}\n  standardise: {by: none}\n  evidence: {kind: visit}\n"
        "  threshold: {kind: fixed, drop: -0.5}\n")
    (tmp_path / "docs/detection.md").write_text((ROOT / "docs/detection.md").read_text())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = Scenario("a", "tiny", None, STEPS, {"validation.every": 50}, base="", draw_every=50)
    monkeypatch.setitem(scenarios.SCENARIOS, "a", small)
    monkeypatch.setattr("detection.runs.CHECKPOINTS", 25)
    return tmp_path


def detect(world, *words):
    return program.main(["--processes", "1", "--cores", "1", *words], world)


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def test_a_run_is_made_once_measured_and_gone_on_with(world, capsys):
    """Stopped by SIGTERM and started again, a run ends as if it had not been; a second call makes nothing."""
    driver = world / "driver.py"
    driver.write_text(TINY.format(steps=STEPS) + "import sys\nfrom pathlib import Path\nfrom detection.__main__ import main\n"
                      f"sys.exit(main(sys.argv[1:], Path({str(world)!r})))\n")
    words = ["--scenario", "a", "--rule", "default", "--seed", "5"]
    run = world / "runs/detection/a/default/seed-5/run"
    process = subprocess.Popen([sys.executable, driver, "--processes", "1", "--cores", "1", *words], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=clean_environment(PYTHONPATH=os.pathsep.join(sys.path)))
    until = time.monotonic() + 60
    while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "bench.sh detection: stopped; the same command goes on", out + err
    assert 0 < len(steps_of(run)) < STEPS

    assert detect(world, *words, "--plan") == 0 and "begun" in capsys.readouterr().out
    assert detect(world, *words) == 0
    assert len(steps_of(run)) == STEPS
    path = world / "bench/detection/results/a-default-seed-5.json"
    result = json.loads(path.read_text())
    assert result["seconds"] is None  # it was interrupted
    assert [drawing["step"] for drawing in result["drawings"]] == [0, 50, 100, 150]
    assert 0 < result["dropped"]["repeated"]["all"]["hits"] < result["dropped"]["repeated"]["all"]["total"]
    everything = result["dropped"]["repeated"]["all"]["total"] + result["dropped"]["ordinary"]["all"]["total"]
    assert everything == STEPS * 32

    before = {file: file.stat().st_mtime_ns for file in (*run.rglob("*"), path)}
    assert detect(world, *words) == 0
    assert {file: file.stat().st_mtime_ns for file in (*run.rglob("*"), path)} == before

    # The same without a stop: in another place, since there it would not be made again.
    assert detect(world, *words, "--again") == 0
    again = json.loads(path.read_text())
    assert again["seconds"] > 0
    times = ("seconds", "step_ms", "ordinary_row_ms")
    assert {k: v for k, v in again.items() if k not in times} == {k: v for k, v in result.items() if k not in times}

    capsys.readouterr()
    assert detect(world, *words[:2], "--rule", "off", "--seed", "5") == 0 and detect(world, *words, "--again") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "against the plain run" in line)
    assert "a/default/seed-5" in said and "control" in said and " run x" in said

    # Another rule is another run: the old figures do not pass for its own.
    config = world / "configs/default.yaml"
    config.write_text(config.read_text().replace("-0.5", "-0.4"))
    capsys.readouterr()
    assert detect(world, *words, "--plan") == 0 and "stale" in capsys.readouterr().out


@pytest.mark.parametrize("words, code, said", [
    (["--scenario", "z"], 3, ["--scenario z", "tune"]), (["--rule", "best"], 3, ["--rule best", "signal:start_gap"]),
    (["--quick", "--scenario", "b"], 3, ["--quick", "a, h"]), (["--seed", "-1"], 2, ["--seed", "'-1'"]),
    (["--pictures", "x"], 2, ["--pictures", "'x'"]), (["--base", "v"], 2, ["--base", "epsilon"]), (["extra"], 2, ["extra"]),
    (["--plan", "--table"], 2, ["--plan", "--table"])])
def test_bad_arguments_are_told_in_one_line(words, code, said, capsys):
    with pytest.raises(SystemExit) as end:
        sys.exit(program.main(words))
    err = capsys.readouterr().err.strip()
    assert end.value.code == code and len(err.splitlines()) == 1 and all(word in err for word in said), err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_trainer_that_fails_is_told_in_one_line(world, capsys, processes):
    (world / "data/demo/mix.h5").write_bytes(b"no data")
    assert detect(world, "--scenario", "a", "--rule", "off", "--processes", processes) == 3
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and "a/off/seed-1" in err and "mix.h5" in err and "train.log" in err, err


def test_a_base_model_is_trained_once_and_halved(world, capsys):
    text = (world / "configs/demo.yaml").read_text().split("sieve:")[0].replace("max_train_steps: 4", "max_train_steps: 2")
    (world / "configs/demo_base.yaml").write_text(text)
    (world / "data/demo/base.h5").write_bytes((world / "data/demo/mix.h5").read_bytes())
    job = Scenario("a", "tiny", None, 2, scenarios.EPSILON, base="models/demo_base_epsilon")
    with pytest.raises(InputError, match="--base epsilon"):
        program.need_base(runs.Job(program.place_of(program.options_of([]), world), job, "off", 1))
    (world / "train.h5").symlink_to(world / "data/demo/mix.h5")
    (world / "held_out.h5").symlink_to(world / "data/demo/held_out.h5")
    assert detect(world, "--base", "epsilon") == 0
    path = world / "models/demo_base_epsilon/diffusion_pytorch_model.safetensors"
    from safetensors.numpy import load_file
    assert all(tensor.dtype == np.float16 and np.isfinite(tensor).all() for tensor in load_file(path).values())
    assert "prediction_type: epsilon" in (world / "runs/detection/bases/epsilon/run/config.yaml").read_text()
    before = path.stat().st_mtime_ns
    assert detect(world, "--base", "epsilon") == 0 and path.stat().st_mtime_ns == before


def test_a_rule_that_is_not_there_is_skipped(world, capsys):
    assert detect(world, "--scenario", "a", "--rule", "iet_agc") == 0
    assert "rule iet_agc: configs/iet_agc.yaml: no such file: the rule is skipped" in capsys.readouterr().out


def test_every_rule_is_one_that_the_trainer_takes(tmp_path):
    """The shipped scenarios and rules: each is merged to a configuration that the trainer reads."""
    train, seen = BUILD / "trainer/memsieve-train", set()
    place = program.place_of(program.options_of([]), ROOT)
    import yaml
    for job in plan.jobs(place, program.options_of([])):
        if job.seed != 1 or job.rule == "off" or not (ROOT / "configs" / f"{rules.FILES.get(job.rule, 'default')}.yaml").exists():
            continue
        # What is the same but for data and steps is asked for once.
        kind = json.dumps([job.config["sieve"], job.scenario.settings])
        if kind in seen:
            continue
        seen.add(kind)
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(job.config | {"output_dir": str(tmp_path / "run"), "model": {"config": "x"}}))
        done = subprocess.run([train, "--config", path, "--print-config"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{job.name}: {done.stderr}"
        assert "\nsieve:" in done.stdout
    assert len(seen) >= 12


@pytest.mark.parametrize("processes", ["1", "2", "4", "32"])
def test_on_many_gpus_a_process_still_has_a_block_of_rows(processes):
    place = program.place_of(program.options_of(["--processes", processes]), ROOT)
    job = runs.Job(place, scenarios.SCENARIOS["a"], "default", 1)
    assert job.config["train_batch_size"] >= job.config["sieve"]["block_rows"]
    assert job.config["train_batch_size"] * place.processes == scenarios.BATCH


def test_the_plan_has_every_run_once_and_plain_runs_for_all():
    every = list(plan.in_table())
    assert len(every) == len(set(every))
    for name, _, seed in every:
        assert (scenarios.SCENARIOS[name].of_plain, "off", seed) in every
    assert not any(name == "tune" for name, _, _ in every)
    place = program.place_of(program.options_of([]), Path(ROOT))
    total = sum(plan.minutes(job, 10) for job in plan.jobs(place, program.options_of([])))
    assert total < 360
    quick = program.options_of(["--quick"])
    assert sum(plan.minutes(job, program.QUICK_ROUNDS) for job in plan.jobs(place, quick)) < 10
