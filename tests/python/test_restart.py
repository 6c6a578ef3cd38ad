"""A rank that is killed, a machine that is lost: torchrun starts all ranks anew, and the run ends as if nothing had happened."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from conftest import BUILD, assert_refused, clean_environment, run
from test_ledger import visits

TRAIN = BUILD / "trainer" / "memsieve-train"
STEPS = 100
# Levels at which a run of a second drops rows.
SIEVE = ("sieve.standardise.bins=2", "sieve.standardise.window=16", "sieve.standardise.min_count=4", "sieve.evidence.min_visits=1",
         "sieve.threshold.drop=0.3", "sieve.threshold.release=0.5")
FILES = ("unet/diffusion_pytorch_model.safetensors", "unet_ema/diffusion_pytorch_model.safetensors", "optimizer.safetensors",
         "sieve.safetensors")


ONE_MACHINE = ("--standalone", "--nproc_per_node", "2")


def start(folder, name, *settings, machine=ONE_MACHINE):
    """The one command line for a first start and for a restart, under torchrun."""
    words = [f"output_dir={name}", f"max_train_steps={STEPS}", "use_ema=true", "train_batch_size=2", *SIEVE, *settings]
    command = [sys.executable, "-m", "torch.distributed.run", *machine, "--no-python", "--max-restarts", "3",
               TRAIN, "--config", "run.yaml", "--resume-from", "auto",
               *(part for word in words for part in ("--set", word))]
    return subprocess.Popen([str(word) for word in command], cwd=folder, env=clean_environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process, seconds=200):
    """What it said; a run that hangs is a failure."""
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {seconds} s:\n{process.communicate()[0]}")
    assert process.returncode == 0, output
    return output


def rank_of(process, rank, needed=True):
    """The process id of a rank that torchrun has started; None if it may run elsewhere."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert not needed, f"rank {rank} is not running"


def await_sign(process, there):
    deadline = time.monotonic() + 120
    while not there():
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"what the test waits for did not come:\n{process.communicate()[0]}")
        time.sleep(0.002)


def kill_when(process, there, rank):
    await_sign(process, there)
    os.kill(rank_of(process, rank), signal.SIGKILL)


def steps(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("step_ms", "images_per_second")} for line in lines]


def assert_same_end(a, b):
    for name in FILES:
        mine, theirs = ((path / "checkpoints" / f"step-{STEPS:06d}" / name).read_bytes() for path in (a, b))
        assert mine == theirs, name
    assert steps(a) == steps(b)
    assert visits(a / "ledger.h5")[1].tobytes() == visits(b / "ledger.h5")[1].tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with an uninterrupted run in whole/."""
    folder = tmp_path_factory.mktemp("restart")
    tiny.write_run(folder)
    finish(start(folder, "whole"))
    assert sum(step["dropped"] for step in steps(folder / "whole")) > 0
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_resumes_from_the_last_checkpoint(whole, rank):
    folder = whole / f"killed{rank}"
    process = start(whole, folder.name, "checkpointing_steps=20")
    kill_when(process, (folder / "checkpoints" / "step-000040").exists, rank)
    assert "resuming after" in finish(process)
    assert_same_end(folder, whole / "whole")


def test_a_rank_killed_before_the_first_checkpoint_starts_anew(whole):
    folder = whole / "early"
    process = start(whole, folder.name)
    kill_when(process, lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 0, 1)
    output = finish(process)
    assert "ended before its first checkpoint; starting anew" in output and "resuming after" not in output
    assert_same_end(folder, whole / "whole")


@pytest.fixture
def machines():
    """Options of torchrun for the first and for other machines, all played by this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    return [("--nnodes", "2", "--nproc_per_node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", place,
             "--local-addr", "127.0.0.1", "--rdzv-conf", f"is_host={host},keep_alive_interval=1,keep_alive_max_attempt=2")
            for host in ("true", "false")]


def worker_of(agent):
    return rank_of(agent, 0, needed=False) or rank_of(agent, 1)


def test_a_rank_killed_on_one_of_two_machines(whole, machines):
    """Both agents restart theirs and meet at the store of the first attempt."""
    folder = whole / "machines"
    first, second = (start(whole, folder.name, "checkpointing_steps=20", machine=m) for m in machines)
    await_sign(first, (folder / "checkpoints" / "step-000040").exists)
    os.kill(worker_of(second), signal.SIGKILL)
    assert "resuming after" in finish(first) + finish(second)
    assert_same_end(folder, whole / "whole")


def test_a_lost_machine_is_replaced(whole, machines, monkeypatch):
    """The second agent dies with its rank, and another comes. (The first would keep the new one from its store, as torch 2.x is,
    without the variable.)"""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    folder = whole / "replaced"
    first, second = (start(whole, folder.name, "checkpointing_steps=20", machine=m) for m in machines)
    await_sign(first, (folder / "checkpoints" / "step-000040").exists)
    for pid in (second.pid, worker_of(second)):
        os.kill(pid, signal.SIGKILL)
    second.communicate()
    third = start(whole, folder.name, "checkpointing_steps=20", machine=machines[1])
    assert "resuming after" in finish(first) + finish(third)
    assert_same_end(folder, whole / "whole")


def auto(folder, *settings):
    return run(TRAIN, "--config", "run.yaml", "--resume-from", "auto", *(part for s in settings for part in ("--set", s)), cwd=folder)


EVALUATED = ("data.validation=held_out.h5", "data.prompts=held_out.h5", "validation.every=4", "sampling.every=4",
             "sampling.num_inference_steps=2")


def kinds(run_folder, step):
    return [line["kind"] for line in steps(run_folder) if line["step"] == step]


def test_auto_leaves_a_finished_run_and_refuses_another(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path, *EVALUATED).returncode == 0
    assert kinds(tmp_path / "run", 4) == ["validation", "samples"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = auto(tmp_path, *EVALUATED)
    assert again.returncode == 0 and "nothing to do" in again.stdout + again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    assert_refused(auto(tmp_path, *EVALUATED, "learning_rate=0.5"), 2, "another configuration", "learning_rate", "output_dir")
    (tmp_path / "run" / "run.json").unlink()
    assert_refused(auto(tmp_path), 2, "another run")


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_whose_checkpoints_are_gone_is_not_begun_anew(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path).returncode == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.rename(tmp_path / "elsewhere")
    before = files_of(tmp_path / "run")
    assert_refused(auto(tmp_path), 2, "finished its 4 steps", "checkpoints are gone", "output_dir")
    checkpoints.mkdir()
    assert_refused(auto(tmp_path), 2, "finished its 4 steps", "checkpoints are gone", "output_dir")
    checkpoints.rmdir()
    assert files_of(tmp_path / "run") == before
    checkpoints.symlink_to(tmp_path / "elsewhere")
    assert "nothing to do" in auto(tmp_path).stderr
    # Of a run that was not finished the folder of checkpoints may be on a disk that is not mounted.
    run_json = tmp_path / "run" / "run.json"
    run_json.write_text(json.dumps({k: v for k, v in json.loads(run_json.read_text()).items() if k != "finished_steps"}))
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    before = files_of(tmp_path / "run")
    assert_refused(auto(tmp_path), 3, "checkpoints", "link to nothing")
    assert files_of(tmp_path / "run") == before


def test_what_follows_the_last_checkpoint_is_made_up_for(tmp_path):
    """The last checkpoint comes before the last validation and drawing: a run that ended between them makes these later."""
    tiny.write_run(tmp_path)
    assert auto(tmp_path, *EVALUATED).returncode == 0
    folder = tmp_path / "run"
    whole = steps(folder)
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json.pop("finished_steps") == 4
    (folder / "run.json").write_text(json.dumps(run_json))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    assert len(steps(folder)) == len(whole) - 2
    assert auto(tmp_path, *EVALUATED).returncode == 0
    assert steps(folder) == whole
    assert "nothing to do" in auto(tmp_path, *EVALUATED).stderr


def test_latest_does_not_return_to_what_was_given_up(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path, "checkpointing_steps=1").returncode == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    early = run(TRAIN, "--config", "run.yaml", "--resume-from", checkpoints / "step-000002", "--set", "max_train_steps=3", cwd=tmp_path)
    assert early.returncode == 0, early.stderr
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-000001", "step-000002", "step-000003", "step-000003.abandoned", "step-000004.abandoned"]
    later = auto(tmp_path, "checkpoints_total_limit=2")
    assert later.returncode == 0 and "resuming after 3 steps" in later.stderr + later.stdout, later.stderr
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000003", "step-000004"]


def test_an_attempt_that_fails_after_the_ledger_was_cut_strands_nothing(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path, "checkpointing_steps=1").returncode == 0
    folder = tmp_path / "run"
    uncut = visits(folder / "ledger.h5")[1]
    (folder / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (folder / "metrics.jsonl").mkdir()
    early = ("--resume-from", folder / "checkpoints" / "step-000002")
    failed = run(TRAIN, "--config", "run.yaml", *early, cwd=tmp_path)
    assert failed.returncode != 0 and "metrics.jsonl" in failed.stderr, failed.stderr
    assert len(visits(folder / "ledger.h5")[1]) == len(uncut) // 2
    (folder / "metrics.jsonl").rmdir()
    (tmp_path / "metrics.jsonl").rename(folder / "metrics.jsonl")
    again = auto(tmp_path)
    assert again.returncode == 0 and "resuming after 2 steps" in again.stderr + again.stdout, again.stderr
    assert visits(folder / "ledger.h5")[1].tobytes() == uncut.tobytes()


@pytest.mark.parametrize("name", ["run #1", "a: b", "it's", "[x", "bilder-ä"])
def test_a_checkpoint_is_named_on_the_command_line_as_its_folder_is_called(tmp_path, name):
    tiny.write_run(tmp_path)
    quote = "'"
    setting = f"output_dir='{name.replace(quote, 2 * quote)}'"
    assert auto(tmp_path, setting, "checkpointing_steps=2").returncode == 0
    early = run(TRAIN, "--config", "run.yaml", "--set", setting, "--resume-from", f"{name}/checkpoints/step-000002", cwd=tmp_path)
    assert early.returncode == 0 and "resuming after 2 steps" in early.stderr, early.stderr


def test_data_may_move_between_the_parts_of_a_run_but_not_change(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path, "checkpointing_steps=2", "max_train_steps=2").returncode == 0
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.h5", "held_out.h5"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = ("data.train=elsewhere/train.h5", "data.held_out=elsewhere/held_out.h5")
    tiny.write_data(tmp_path / "other.h5", 17, 1)
    assert_refused(auto(tmp_path, "data.train=other.h5", moved[1]), 2, "data.train", "not the data that", "17 rows of", "16 rows of")
    assert auto(tmp_path, *moved).returncode == 0
    assert len(steps(tmp_path / "run")) == 4


def edit_state(run_folder, change):
    """Changes what the newest checkpoint's state.json says; as in one of an older version, nothing tells of the change."""
    path = max((run_folder / "checkpoints").iterdir()) / "state.json"
    state = json.loads(path.read_text())
    for name in ("crc32", "state_crc32"):
        state.pop(name, None)
    change(state)
    path.write_text(json.dumps(state))


def test_a_checkpoint_of_another_version_is_compared_by_what_it_means(tmp_path):
    """A key that the saved configuration lacks had its default; one that is gone now, or that differs, is named."""
    tiny.write_run(tmp_path)
    assert auto(tmp_path, "max_train_steps=2").returncode == 0

    def saved(change):
        edit_state(tmp_path / "run", lambda state: state.update(meaning=change(state["meaning"])))

    saved(lambda text: re.sub(r"noise_offset: .*\n", "", text).replace("learning_rate: 0.001", "learning_rate: 1e-3"))
    assert_refused(auto(tmp_path, "noise_offset=0.5"), 2, "`noise_offset: 0.5` / `noise_offset: 0`", "step-000002")
    assert_refused(auto(tmp_path, "learning_rate=0.5"), 2, "`learning_rate: 0.5` / `learning_rate: 0.001`")
    assert_refused(auto(tmp_path, "sieve.held_out.rows=4"), 2, "`sieve.held_out.rows: 4` / `sieve.held_out.rows: 2`")
    saved(lambda text: text + "old_key: 3\n")
    assert_refused(auto(tmp_path), 2, "old_key", "no such key")
    saved(lambda text: text.replace("old_key: 3\n", "") + "validation: {old_key: 3}\n")
    done = auto(tmp_path, "validation.draws=2", "log_every=3")
    assert done.returncode == 0 and "resuming after 2 steps" in done.stderr, done.stderr


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    tiny.write_run(tmp_path)
    assert auto(tmp_path, "max_train_steps=2").returncode == 0
    edit_state(tmp_path / "run", lambda state: state.update(version=2))
    assert_refused(auto(tmp_path), 3, "state.json", "version 2", "--resume-from")


def test_a_full_disk_ends_all_ranks(tmp_path):
    """Rank 0 alone writes the ledger and the metrics; files above a limit fail as on a full disk."""
    tiny.write_run(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", *ONE_MACHINE, "--no-python", "bash", "-c",
               f"trap '' XFSZ; ulimit -f 24; exec {TRAIN} --config run.yaml --set max_train_steps=100000 --set train_batch_size=2 "
               "--set sieve.ledger.flush_every=1 --set tensorboard=false"]
    result = run(*command, cwd=tmp_path, timeout=120)
    assert result.returncode != 0
    assert "is the disk full?" in result.stderr, result.stderr
    assert "rank 0" in result.stderr
