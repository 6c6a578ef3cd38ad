"""A run's folder: one run at a time, damaged checkpoints are passed over, and a folder that goes away ends the run."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
import tiny
from conftest import BUILD, assert_refused, clean_environment, run, run_ok
from test_ledger import visits

TRAIN = BUILD / "trainer" / "memsieve-train"
FILES = ("unet/diffusion_pytorch_model.safetensors", "optimizer.safetensors", "sieve.safetensors")


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    return tmp_path


def command(*settings, resume="auto", options=()):
    return [TRAIN, "--config", "run.yaml", "--resume-from", resume, *options,
            *(word for s in settings for word in ("--set", s))]


def train(folder, *settings, **options):
    return run(*command(*settings, **options), cwd=folder)


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


class LongRun:
    """A run that goes on until something ends it."""

    def __init__(self, folder, *settings, prefix=()):
        self.process = subprocess.Popen([str(word) for word in [*prefix, *command("max_train_steps=1000000", *settings)]], cwd=folder,
                                        env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def wait_for(self, there, seconds=90):
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "what the test waits for did not come"
            time.sleep(0.01)

    def end(self, seconds=60):
        """Its exit code and what it said last."""
        output, errors = self.process.communicate(timeout=seconds)
        assert errors.strip(), output
        return self.process.returncode, errors.strip().splitlines()[-1]


def steps_saved(run_folder):
    return sorted(int(path.name[5:]) for path in (run_folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name))


# Checkpoints.

@pytest.fixture(scope="module")
def ended_runs(tmp_path_factory):
    """A folder with a run in whole/, and the same with a checkpoint of each step in run/; to be copied."""
    folder = tmp_path_factory.mktemp("ended")
    tiny.write_run(folder)
    run_ok(*command("output_dir=whole"), cwd=folder)
    run_ok(*command("checkpointing_steps=1"), cwd=folder)
    return folder


@pytest.mark.parametrize("name", [*FILES, "state.json"])
@pytest.mark.parametrize("resume", ["auto", "latest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_sound_one(tmp_path, ended_runs, name, resume):
    folder = shutil.copytree(ended_runs, tmp_path / "copy")
    checkpoints = folder / "run" / "checkpoints"
    flip(checkpoints / "step-000004" / name)
    shutil.rmtree(checkpoints / "step-000003" / "scheduler")
    for stray in ("step-000009", "notes.txt"):
        (checkpoints / stray).write_text("no checkpoint")
    dry = train(folder, resume=resume, options=["--dry-run"])
    assert dry.returncode == 0 and steps_saved(folder / "run") == [1, 2, 3, 4, 9], dry.stderr
    done = train(folder, resume=resume)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "resuming after 2 steps" in said, said
    damage = "is torn" if name == "state.json" and "is torn" in said else "is damaged"
    assert re.search(rf"step-000004/{name}: {damage}.*passed over for .*step-000002", said), said
    assert re.search(r"step-000003/scheduler/scheduler_config.json: is missing.*passed over for .*step-000002", said), said
    for file in FILES:
        ends = [(folder / run / "checkpoints" / "step-000004" / file).read_bytes() for run in ("run", "whole")]
        assert ends[0] == ends[1], file
    assert (checkpoints / "step-000004.damaged").is_dir() and (checkpoints / "step-000003.damaged").is_dir()
    ledgers = [visits(folder / run / "ledger.h5")[1].tobytes() for run in ("run", "whole")]
    assert ledgers[0] == ledgers[1]


def test_no_sound_checkpoint_is_no_new_run(folder):
    run_ok(*command("checkpointing_steps=2"), cwd=folder)
    before = (folder / "run" / "metrics.jsonl").read_text()
    for step in (2, 4):
        flip(folder / "run" / "checkpoints" / f"step-00000{step}" / "optimizer.safetensors")
    for resume in ("auto", "latest"):
        assert_refused(train(folder, resume=resume), 3, "step-000004/optimizer.safetensors: is damaged", "nor is any older", "output_dir")
    assert_refused(train(folder, resume=folder / "run" / "checkpoints" / "step-000002"), 3, "step-000002/optimizer", "damaged")
    assert (folder / "run" / "metrics.jsonl").read_text() == before and steps_saved(folder / "run") == [2, 4]


def test_checkpoints_without_hashes_are_resumed(folder):
    """Those of older versions."""
    run_ok(*command("max_train_steps=2"), cwd=folder)
    path = folder / "run" / "checkpoints" / "step-000002" / "state.json"
    state = json.loads(path.read_text())
    assert set(state.pop("crc32")) == set(state["files"]) and state.pop("state_crc32")
    path.write_text(json.dumps(state))
    done = train(folder)
    assert done.returncode == 0 and "resuming after 2 steps" in done.stdout + done.stderr, done.stderr


def test_a_folder_whose_name_is_no_utf8_is_resumed(folder):
    words = [os.fsencode(word) for word in (TRAIN, "--config", "run.yaml", "--resume-from", "auto")]
    for steps in (2, 4):
        done = subprocess.run([*words, b"--set", b"output_dir=l\xe4uft", b"--set", f"max_train_steps={steps}".encode()], cwd=folder,
                              env=clean_environment(), capture_output=True)
        assert done.returncode == 0, done.stderr
    assert b"resuming after 2 steps" in done.stdout + done.stderr
    assert os.path.isdir(os.fsencode(folder) + b"/l\xe4uft/checkpoints/step-000004")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_ledger_reaches_the_disk_before_the_checkpoint_that_counts_on_it(folder):
    traced = run("strace", "-f", "-y", "-e", "trace=fsync", "-o", "trace", *command("checkpointing_steps=2", "max_train_steps=6"), cwd=folder)
    if "PTRACE" in traced.stderr:
        pytest.skip("no tracing here")
    assert traced.returncode == 0, traced.stderr
    order = re.findall(r"fsync\(\d+<[^>]*/(ledger\.h5|step-\d+\.tmp)(?:/[^>]*)?>", (folder / "trace").read_text())
    changes = [b for a, b in zip([None, *order], order) if a != b]
    assert changes[-6:] == [name for step in (2, 4, 6) for name in ("ledger.h5", f"step-{step:06d}.tmp")], changes


# One run, one folder.

def test_a_second_run_in_a_live_folder_is_refused(folder):
    with LongRun(folder, "checkpointing_steps=20") as first:
        first.wait_for(lambda: (folder / "run" / "checkpoints" / "step-000020").exists())
        who = (f"process {first.process.pid} on {socket.gethostname()}", "run is being written to by", "output_dir")
        for settings in ([], ["--dry-run"]):
            assert_refused(train(folder, "max_train_steps=1000000", options=settings), 2, *who)
        assert_refused(train(folder, resume=folder / "run" / "checkpoints" / "step-000020"), 2, *who)
        assert_refused(run(TRAIN, "--config", "run.yaml", cwd=folder), 2, *who)
        there = max(steps_saved(folder / "run"))
        first.wait_for(lambda: max(steps_saved(folder / "run")) > there + 20)  # none of them has disturbed it
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    last = max(steps_saved(folder / "run"))
    done = train(folder, f"max_train_steps={last + 1}")
    assert done.returncode == 0 and f"resuming after {last} steps" in done.stdout + done.stderr, done.stderr
    assert not (folder / "run" / "run.lock").exists() and not (folder / "run" / "ledger.h5.lock").exists()


def test_two_runs_that_start_at_once_are_one(folder):
    """Both may find no folder yet."""
    together = [LongRun(folder) for _ in range(2)]
    try:
        deadline = time.monotonic() + 90
        while all(run.process.poll() is None for run in together):
            assert time.monotonic() < deadline, "both write to one folder"
            time.sleep(0.01)
        loser = next(run for run in together if run.process.poll() is not None)
        winner = next(run for run in together if run is not loser)
        code, said = loser.end()
        assert code == 2 and ("is being written to by" in said or "holds" in said), said
        winner.wait_for(lambda: (folder / "run" / "metrics.jsonl").exists() and (folder / "run" / "metrics.jsonl").stat().st_size > 0)
    finally:
        for run in together:
            run.__exit__()


def test_a_finished_run_in_a_folder_that_cannot_be_written_to(folder):
    run_ok(*command(), cwd=folder)
    make_read_only(folder / "run")
    done = run(*powerless(), *command(), cwd=folder)
    assert done.returncode == 0 and "nothing to do" in done.stdout + done.stderr, done.stderr
    assert_refused(run(*powerless(), *command("max_train_steps=5"), cwd=folder), 2, "run cannot be written to", "output_dir")


# A folder that goes away.

def powerless():
    """What takes from root the power over permissions, in front of a command."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root's power over permissions cannot be taken without setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def make_read_only(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.parametrize("name", ["step-000004/optimizer.safetensors", "step-000004/state.json", "."])
def test_what_may_not_be_read_is_not_passed_over(folder, name):
    """Permissions can be mended; neither an older checkpoint nor a new run takes the place of what is there."""
    run_ok(*command("checkpointing_steps=2"), cwd=folder)
    before = sorted(folder.rglob("*"))
    closed = folder / "run" / "checkpoints" / name
    mode = closed.stat().st_mode
    closed.chmod(0)
    refused = run(*powerless(), *command("max_train_steps=6"), cwd=folder)
    closed.chmod(mode)
    assert_refused(refused, 3, "run/checkpoints", "Permission denied")
    assert sorted(folder.rglob("*")) == before
    assert_goes_on(folder, folder / "run")


def assert_goes_on(folder, run_folder):
    last = max(steps_saved(run_folder))
    done = train(folder, f"output_dir={run_folder.name}", f"max_train_steps={last + 2}")
    assert done.returncode == 0 and f"resuming after {last} steps" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("every", [20, 1000000])
def test_a_folder_that_is_moved_ends_the_run(folder, every):
    """At a checkpoint, or within a second or so."""
    with LongRun(folder, f"checkpointing_steps={every}") as long:
        metrics = folder / "run" / "metrics.jsonl"
        long.wait_for(lambda: (folder / "run" / "checkpoints" / "step-000020").exists() if every == 20
                      else metrics.exists() and metrics.stat().st_size > 0)
        (folder / "run").rename(folder / "moved")
        code, said = long.end()
    assert code == 3 and "run: is not the folder that this run writes to any more" in said and "moved" in said, said
    assert not (folder / "run").exists()
    if every == 20:
        assert_goes_on(folder, folder / "moved")


def test_a_folder_that_is_replaced_ends_the_run_and_is_left_alone(folder):
    with LongRun(folder, "checkpointing_steps=20") as long:
        long.wait_for(lambda: (folder / "run" / "checkpoints" / "step-000020").exists())
        (folder / "run").rename(folder / "moved")
        (folder / "run").mkdir()
        code, said = long.end()
    assert code == 3 and "replaced" in said, said
    assert not list((folder / "run").iterdir())
    assert_goes_on(folder, folder / "moved")


def test_a_folder_that_becomes_read_only_ends_the_run(folder):
    with LongRun(folder, "checkpointing_steps=20", prefix=powerless()) as long:
        long.wait_for(lambda: (folder / "run" / "checkpoints" / "step-000020").exists())
        make_read_only(folder / "run")
        code, said = long.end()
    assert code == 3 and "Permission denied" in said and "checkpoints/step-" in said, said
    assert not list((folder / "run" / "checkpoints").glob("*.tmp/state.json"))
    for path in (folder / "run", *(path for path in (folder / "run").rglob("*"))):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert_goes_on(folder, folder / "run")


@pytest.mark.parametrize("option", ["--dry-run", None])
@pytest.mark.parametrize("resume", [[], ["--resume-from", "auto"]])
def test_an_output_folder_that_is_a_file(folder, option, resume):
    (folder / "run").write_text("precious")
    for name in ("run", "run/deeper"):
        refused = run(TRAIN, "--config", "run.yaml", "--set", f"output_dir={name}", *resume, *([option] if option else []), cwd=folder)
        assert_refused(refused, 2, "output_dir", "is no folder")
    assert (folder / "run").read_text() == "precious"
