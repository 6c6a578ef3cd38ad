"""Event files as the tensorboard package reads them, against metrics.jsonl, the ledger and the drawn pictures."""

import io
import json
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
import tiny
from conftest import BUILD, clean_environment, run_ok
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = BUILD / "trainer" / "memsieve-train"
OF_THE_SIEVE = {"dropped", "downweighted", "probed", "mean_score", "drop_level", "nonfinite"}


def command(*settings):
    return [TRAIN, "--config", "run.yaml", *(word for s in settings for word in ("--set", s))]


def events(folder):
    everything = dict.fromkeys(("scalars", "images", "histograms", "compressedHistograms"), 0)
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run of 6 steps that was resumed from its checkpoint at step 4 and brought to 9."""
    folder = tmp_path_factory.mktemp("resumed")
    tiny.write_run(folder)
    settings = ["data.validation=held_out.h5", "data.prompts=held_out.h5", "validation.every=4", "sampling.every=4",
                "sampling.num_inference_steps=2", "checkpointing_steps=4", "sieve.standardise.by=none",
                "sieve.evidence.kind=visit", "sieve.threshold.kind=fixed", "sieve.threshold.drop=0.6", "sieve.filters.magnitude.scale=linear"]
    run_ok(*command(*settings, "max_train_steps=6"), cwd=folder)
    run_ok(*command(*settings, "max_train_steps=9"), "--resume-from", "run/checkpoints/step-000004", cwd=folder)
    return folder / "run"


def test_scalars_are_those_of_the_jsonl_each_step_once(resumed):
    wanted = {}
    for line in lines(resumed):
        for key, value in line.items():
            if key in ("kind", "step") or not isinstance(value, (int, float)):
                continue
            group = {"step": "train", "validation": "validation"}[line["kind"]]
            wanted.setdefault(f"{'sieve' if key in OF_THE_SIEVE else group}/{key}", {})[line["step"]] = np.float32(value)
        if line["kind"] == "step":
            wanted.setdefault("sieve/dropped_fraction", {})[line["step"]] = np.float32(line["dropped"] / line["rows"])
    found = events(resumed)
    assert set(found.Tags()["scalars"]) == set(wanted)
    for tag, values in wanted.items():
        scalars = found.Scalars(tag)
        assert [s.step for s in scalars] == sorted(values), tag
        assert [np.float32(s.value) for s in scalars] == [values[s.step] for s in scalars], tag
    assert sorted(wanted["train/loss"]) == list(range(9)) and sorted(wanted["validation/loss"]) == [0, 4, 8, 9]
    assert 0 < sum(wanted["sieve/dropped"].values()) < 9 * 4


def test_pictures_are_the_sheets_that_were_drawn(resumed):
    pictures = events(resumed).Images("samples")
    assert [p.step for p in pictures] == [0, 4, 8, 9]
    for picture in pictures:
        sheet = (resumed / f"samples/step-{picture.step:06d}.png").read_bytes()
        assert picture.encoded_image_string == sheet
        with Image.open(io.BytesIO(sheet)) as image:
            image.load()
            assert (image.width, image.height, image.mode) == (picture.width, picture.height, "RGB")


def test_histograms_hold_every_row_of_the_ledger_once(resumed):
    with h5py.File(resumed / "ledger.h5", "r", libver="latest", swmr=True) as file:
        visits = file["visits"][:]
    visits, found = visits[visits["kind"] == 0], events(resumed)
    columns = ("score", "raw_magnitude", "raw_prediction_error")
    assert found.Tags()["histograms"] == [f"sieve/{column}" for column in sorted(columns, key=lambda c: f"sieve/{c}")]
    for column in columns:
        values = visits[column][np.isfinite(visits[column])].astype(float)
        parts = [h.histogram_value for h in found.Histograms(f"sieve/{column}")]
        assert sum(p.num for p in parts) == len(values) == sum(sum(p.bucket) for p in parts)
        assert sum(p.sum for p in parts) == pytest.approx(values.sum(), rel=1e-6)
        assert sum(p.sum_squares for p in parts) == pytest.approx((values**2).sum(), rel=1e-6)
        assert min(p.min for p in parts) == values.min() and max(p.max for p in parts) == values.max()
        for p in parts:
            assert all(a < b for a, b in zip(p.bucket_limit, p.bucket_limit[1:])) and p.bucket_limit[-1] == p.max


def test_a_killed_run_leaves_readable_files(tmp_path):
    tiny.write_run(tmp_path)
    process = subprocess.Popen([str(w) for w in command("max_train_steps=1000000", "filter=off")], cwd=tmp_path,
                               env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (list(tmp_path.glob("run/tensorboard/*")) and
                                                   len(events(tmp_path / "run").Tags()["scalars"]) > 0):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    found = events(tmp_path / "run")
    losses = found.Scalars("train/loss")
    assert [s.step for s in losses] == list(range(len(losses))) and losses
    assert not any(tag.startswith("sieve/") for tag in found.Tags()["scalars"])  # there is no sieve


def test_switched_off_it_writes_nothing(tmp_path):
    tiny.write_run(tmp_path)
    run_ok(*command("tensorboard=false"), cwd=tmp_path)
    assert not (tmp_path / "run/tensorboard").exists()
