"""The ledger as a user reads it: with h5py, while a run goes on, after a crash, after a resumption."""
import json
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tiny
from conftest import BUILD, ROOT, clean_environment, run, run_ok

TRAIN = BUILD / "trainer" / "memsieve-train"


def visits(path):
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        return dict(file.attrs), file["visits"][:]


def command(*settings):
    return [TRAIN, "--config", "run.yaml", *(word for s in settings for word in ("--set", s))]


def test_layout(tmp_path):
    tiny.write_run(tmp_path)
    run_ok(*command("max_train_steps=6"), cwd=tmp_path)
    attributes, rows = visits(tmp_path / "run" / "ledger.h5")
    assert attributes["format"].decode() == "memsieve-ledger" and attributes["version"] == 1
    assert attributes["filters"].decode() == "magnitude,prediction_error"
    assert b"timestep_min" in attributes["configuration"]
    assert rows.dtype.names == ("step", "epoch", "sample", "group", "timestep", "kind", "captioned", "flagged", "weight", "score",
                                "threshold", "alike", "raw_magnitude", "z_magnitude", "raw_prediction_error", "z_prediction_error")
    assert len(rows) == 6 * (4 + 2)
    training, held_out = rows[rows["kind"] == 0], rows[rows["kind"] == 1]
    assert sorted(np.unique(training["step"])) == list(range(6))
    # Four steps of four rows are one epoch of the 16 samples, each seen once.
    assert sorted(training["sample"][training["epoch"] == 0]) == list(range(16))
    assert (held_out["sample"] < 8).all() and (held_out["weight"] == 0).all()
    measured = training["captioned"] == 1
    assert np.isfinite(training["raw_magnitude"][measured]).all() and np.isnan(training["raw_magnitude"][~measured]).all()


def test_passed_over_visits_and_looks(tmp_path):
    tiny.write_run(tmp_path)
    half = ["max_train_steps=40", "sieve.threshold.kind=robust_z", "sieve.threshold.drop=0", "sieve.threshold.release=0",
            "sieve.reference.kind=none", "sieve.evidence.min_visits=1", "sieve.standardise.bins=1"]
    run_ok(*command("output_dir=plain", *half, "max_train_steps=120"), cwd=tmp_path)
    run_ok(*command(*half, "sieve.action.pass_over=true", "sieve.revisit.rows=2", "sieve.revisit.every=4"), cwd=tmp_path)
    _, rows = visits(tmp_path / "run" / "ledger.h5")
    training, passed, looks = (rows[rows["kind"] == kind] for kind in (0, 2, 3))
    assert len(training) == 40 * 4 and len(passed) > 20 and 0 < len(looks) <= 10 * 2
    assert ((passed["flagged"] == 1) & (passed["weight"] == 0) & (passed["captioned"] == 0)).all()
    assert all(np.isnan(passed[name]).all() for name in rows.dtype.names if name.startswith(("raw_", "z_", "score", "timestep")))
    assert (looks["weight"] == 0).all() and np.isfinite(looks["raw_magnitude"]).all() and (looks["step"] % 4 == 0).all()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line["passed_over"] for line in lines if line["kind"] == "step"]
    assert told == [int((passed["step"] == step).sum()) for step in range(40)]
    # Trained on or passed over: the stream of samples is the one of a run that takes what comes.
    _, plain = visits(tmp_path / "plain" / "ledger.h5")
    stream, walked = plain["sample"][plain["kind"] == 0], np.concatenate([training["sample"], passed["sample"]])
    assert sorted(walked) == sorted(stream[:len(walked)])
    assert training["epoch"].max() == (len(walked) - 1 - told[-1] - 3) // 16


def test_a_killed_run_leaves_a_readable_ledger(tmp_path):
    tiny.write_run(tmp_path)
    process = subprocess.Popen([str(w) for w in command("max_train_steps=100000", "sieve.ledger.flush_every=5")], cwd=tmp_path,
                               env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 40):
            time.sleep(0.05)
        _, meanwhile = visits(tmp_path / "run" / "ledger.h5")
        assert len(read_by_package(tmp_path / "run").stdout.split()) >= len(meanwhile)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    _, rows = visits(tmp_path / "run" / "ledger.h5")
    assert len(rows) >= len(meanwhile) > 0
    assert len(read_by_package(tmp_path / "run").stdout.split()) == len(rows)
    assert len(rows) % (5 * 6) == 0  # whole flushes of five steps with four training and two held-out rows
    assert (rows["step"] == np.repeat(np.arange(len(rows) // 6), 6)).all()


def test_a_resumed_run_continues_the_ledger(tmp_path):
    tiny.write_run(tmp_path)
    run_ok(*command("max_train_steps=10", "output_dir=whole"), cwd=tmp_path)
    run_ok(*command("max_train_steps=6", "output_dir=parts"), cwd=tmp_path)
    run_ok(*command("max_train_steps=10", "output_dir=parts"), "--resume-from", "latest", cwd=tmp_path)
    whole, parts = (visits(tmp_path / name / "ledger.h5")[1] for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()


def test_a_ledger_that_lost_rows_or_is_gone_strands_no_checkpoint(tmp_path):
    """As after the loss of rank 0's machine, or of its disk."""
    tiny.write_run(tmp_path)
    ledger = tmp_path / "run" / "ledger.h5"
    run_ok(*command("max_train_steps=6"), cwd=tmp_path)
    _, whole = visits(ledger)
    with h5py.File(ledger, "r+", libver="latest") as file:
        file["visits"].resize((4 * 6 + 1,))
    shorter = run(*command("max_train_steps=8"), "--resume-from", "latest", cwd=tmp_path)
    assert shorter.returncode == 0, shorter.stderr
    assert "holds 25 rows, but the checkpoint counts on 36" in shorter.stdout + shorter.stderr
    attributes, rows = visits(ledger)
    assert (rows["step"] == np.concatenate([whole["step"][:25], np.repeat([6, 7], 6)])).all()
    assert attributes["gaps"].tolist() == [[25, 11]]
    later = run(*command("max_train_steps=9"), "--resume-from", "latest", cwd=tmp_path)
    assert later.returncode == 0 and "ledger" not in later.stdout + later.stderr, later.stderr
    assert visits(ledger)[1][:len(rows)].tobytes() == rows.tobytes()
    ledger.unlink()
    gone = run(*command("max_train_steps=10"), "--resume-from", "latest", cwd=tmp_path)
    assert gone.returncode == 0, gone.stderr
    assert "is missing" in gone.stdout + gone.stderr and "the 54 rows before it are gone" in gone.stdout + gone.stderr
    assert set(visits(ledger)[1]["step"]) == {9}


READ = """from memsieve import errors, ledger
try:
    print(*ledger.visits("ledger.h5")["step"])
except errors.DataError as error:
    print(error)
"""


def read_by_package(folder):
    return run(sys.executable, "-c", READ, cwd=folder, timeout=60)


def write_ledger(path):
    """Four chunks of 100 rows; returns where the bytes of the second one lie."""
    rows = np.zeros(400, dtype=[("step", "u8"), ("noise", "f8")])
    rows["step"], rows["noise"] = np.arange(400), np.random.default_rng(0).standard_normal(400)
    with h5py.File(path, "w", libver="latest") as file:
        visits = file.create_dataset("visits", data=rows, chunks=(100,), maxshape=(None,), shuffle=True, compression="gzip")
        chunk = visits.id.get_chunk_info(1)
    return chunk.byte_offset, chunk.size


def damage(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xff
    path.write_bytes(data)


def test_what_is_left_of_a_damaged_ledger(tmp_path):
    offset, size = write_ledger(tmp_path / "ledger.h5")
    damage(tmp_path / "ledger.h5", offset + size // 2)
    result = read_by_package(tmp_path)
    assert [int(word) for word in result.stdout.split()] == [*range(100), *range(200, 400)]
    assert "100 of 400 visits are damaged" in result.stderr


@pytest.mark.parametrize("at, words", [(20, "cannot be read as HDF5"), (100, "is damaged"), (150, "is damaged"), (200, "is damaged")])
def test_reading_does_not_wait_for_a_damaged_ledger_to_become_sound(tmp_path, at, words):
    write_ledger(tmp_path / "ledger.h5")
    damage(tmp_path / "ledger.h5", at)
    assert f"ledger.h5: {words}" in read_by_package(tmp_path).stdout
