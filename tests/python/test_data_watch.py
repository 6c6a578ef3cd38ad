"""Files that change under a run, and what is no file: all ranks end with exit code 3 and say which; nothing waits for ever."""
import os
import shutil
import signal
import socket
import subprocess
import time

import h5py
import numpy as np
import pytest
import tiny
from conftest import BUILD, assert_refused, clean_environment, run

TRAIN = BUILD / "trainer" / "memsieve-train"
ENDLESS = ("max_train_steps=1000000", "checkpointing_steps=1000000")


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    return tmp_path


def start(folders, *settings):
    """A run that goes on until something ends it, one process for each rank, each in its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = len(folders)
    command = [str(TRAIN), "--config", "run.yaml", *(part for word in (*ENDLESS, *settings) for part in ("--set", word))]
    world = [dict(RANK=str(i), WORLD_SIZE=str(ranks), LOCAL_RANK=str(i), LOCAL_WORLD_SIZE=str(ranks),
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=port) if ranks > 1 else {} for i in range(ranks)]
    return [subprocess.Popen(command, cwd=folder, env=clean_environment(**place), text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE) for folder, place in zip(folders, world)]


def await_steps(folder, processes, count):
    metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        alive = all(process.poll() is None for process in processes)
        if not alive or time.monotonic() > deadline:
            said = [stop(process).stderr for process in processes]
            pytest.fail(f"no {count} steps: {said}")
        time.sleep(0.01)


def stop(process, seconds=0.1):
    """What it said and how it ended; killed if it does not end."""
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def cut(path):
    os.truncate(path, path.stat().st_size // 3)


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 64)


def replace(path):
    tiny.write_data(path.with_name("other.h5"), 16, 9)
    os.replace(path.with_name("other.h5"), path)


@pytest.mark.parametrize("change, words", [(cut, "shrank from"), (overwrite, "was changed"), (replace, "was replaced")])
@pytest.mark.parametrize("cache_mb", [0, 256])
def test_a_training_set_that_changes_ends_the_run(folder, change, words, cache_mb):
    processes = start([folder], f"data.cache_mb={cache_mb}")
    await_steps(folder, processes, 5)
    change(folder / "train.h5")
    result = stop(processes[0], 60)
    assert result.returncode == 3, result.stderr
    assert f"train.h5: {words}" in result.stderr.strip().splitlines()[-1], result.stderr


def test_rows_read_after_the_file_was_cut_are_never_trained_on(folder):
    """HDF5 reads zeros past the end of the file: a run goes on with other numbers, unless it ends."""
    tiny.write_run(folder, latents=True)
    whole = (folder / "train.h5").read_bytes()
    processes = start([folder], "data.cache_mb=0", "data.prefetch=0", "checkpointing_steps=1", "filter=off")
    await_steps(folder, processes, 5)
    cut(folder / "train.h5")
    assert stop(processes[0], 60).returncode == 3
    (folder / "train.h5").write_bytes(whole)
    last = max(int(path.name.removeprefix("step-")) for path in (folder / "run/checkpoints").iterdir())
    again = run(TRAIN, "--config", "run.yaml", "--set", f"max_train_steps={last}", "--set", "filter=off", "--set",
                "output_dir=whole", "--set", f"checkpointing_steps={last}", cwd=folder, timeout=120)
    assert again.returncode == 0, again.stderr
    name = f"checkpoints/step-{last:06}/unet/diffusion_pytorch_model.safetensors"
    assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()


@pytest.mark.parametrize("name, settings", [
    ("train.h5", ("data.cache_mb=0",)),
    ("held_out.h5", ("data.cache_mb=0", "sieve.held_out.every=1")),
    ("validation.h5", ("data.validation=validation.h5", "validation.every=5", "validation.draws=1")),
])
def test_all_ranks_end_with_exit_code_3_and_name_the_file(folder, name, settings):
    tiny.write_data(folder / "validation.h5", 8, 3)
    processes = start([folder] * 2, "train_batch_size=2", *settings)
    await_steps(folder, processes, 5)
    cut(folder / name)
    for process in processes:
        result = stop(process, 60)
        assert result.returncode == 3, result.stderr
        assert f"{name}: shrank from" in result.stderr.strip().splitlines()[-1], result.stderr


def test_a_file_of_one_rank_alone_ends_all_with_exit_code_3(folder):
    """As on two machines with a copy of the data each."""
    shutil.copytree(folder, folder / "second")
    processes = start([folder, folder / "second"], "train_batch_size=2", "data.cache_mb=0", f"output_dir={folder}/run")
    await_steps(folder, processes, 5)
    cut(folder / "second/train.h5")
    for process in processes:
        result = stop(process, 60)
        assert result.returncode == 3, result.stderr
        assert "train.h5: shrank from" in result.stderr.strip().splitlines()[-1], result.stderr
        assert "rank 1" in result.stderr.strip().splitlines()[-1], result.stderr


# ---- headers that claim what is not there ------------------------------------------------------------------------------------


def test_rows_that_the_file_cannot_hold(folder):
    with h5py.File(folder / "train.h5", "r+") as file:
        for name, shape, dtype in (("text", (2**40, 5, 6), "f4"), ("group_id", (2**40,), "i8")):
            del file[name]
            file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip")
    assert_refused(run(TRAIN, "--config", "run.yaml", cwd=folder, timeout=60), 3, "train.h5: /text", "more than a file of")


def test_a_format_of_many_values(folder):
    with h5py.File(folder / "train.h5", "r+") as file:
        del file.attrs["format"]
        file.attrs["format"] = np.full(4000, b"memsieve-dataset")
    assert_refused(run(TRAIN, "--config", "run.yaml", cwd=folder, timeout=60), 3, "train.h5", "'format' must be one string")


def test_what_a_terminal_obeys_is_not_printed(folder):
    with h5py.File(folder / "train.h5", "r+") as file:
        file.attrs["format"] = "other\x1b[31m\nset"
    assert_refused(run(TRAIN, "--config", "run.yaml", cwd=folder, timeout=60), 3, "'format' is 'other?[31m?set'")


def test_rows_in_another_file(folder):
    with h5py.File(folder / "train.h5", "r+") as file:
        file.move("text", "states")
        file["text"] = h5py.ExternalLink("held_out.h5", "/text")
    assert_refused(run(TRAIN, "--config", "run.yaml", cwd=folder, timeout=60), 3, "train.h5: /text",
                   "external link to held_out.h5:/text")


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, link: None])
def test_the_training_set_held_out(folder, make):
    name = "train.h5"
    if make in (os.symlink, os.link):
        name = "again.h5"
        make(folder / "train.h5", folder / name)
    result = run(TRAIN, "--config", "run.yaml", "--dry-run", "--set", f"data.held_out={name}", cwd=folder, timeout=60)
    assert_refused(result, 2, "data.held_out", "same file as data.train")


# ---- what is no regular file -------------------------------------------------------------------------------------------------


def pipe_at(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name, settings, code", [
    ("run.yaml", (), 2),
    ("train.h5", (), 3),
    ("held_out.h5", (), 3),
    ("unet.json", (), 2),
    ("scheduler.json", ("model.scheduler=scheduler.json",), 2),
    ("plugin.so", ("sieve.plugins=[plugin.so]",), 2),
    ("model/config.json", ("model.pretrained=model", "model.config="), 2),
])
def test_a_pipe_is_refused_before_it_is_opened(folder, name, settings, code):
    (folder / "model").mkdir()
    pipe_at(folder / name)
    words = [part for word in settings for part in ("--set", word)]
    assert_refused(run(TRAIN, "--config", "run.yaml", *words, cwd=folder, timeout=60), code, f"{name}: is not a file but a pipe")


def test_a_device_is_refused_before_it_is_opened(folder):
    assert_refused(run(TRAIN, "--config", "/dev/zero", cwd=folder, timeout=60), 2, "/dev/zero: is not a file but a device")


@pytest.mark.parametrize("name", ["checkpoints/step-000002/state.json", "checkpoints/step-000002/optimizer.safetensors",
                                  "checkpoints/step-000002/unet/config.json", "checkpoints/step-000002/sieve.safetensors",
                                  "metrics.jsonl", "ledger.h5"])
def test_a_pipe_in_the_run_folder_does_not_hang_a_resume(folder, name):
    done = run(TRAIN, "--config", "run.yaml", "--set", "max_train_steps=2", cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    pipe_at(folder / "run" / name)
    result = run(TRAIN, "--config", "run.yaml", "--resume-from", "latest", cwd=folder, timeout=60)
    assert result.returncode in (0, 2, 3), result.stderr
    assert name.rpartition("/")[2] in result.stderr, result.stderr
