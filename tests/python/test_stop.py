"""SIGTERM and SIGINT at any time: while it starts, while it waits for peers, while a read hangs. And peers that never come."""
import os
import signal
import socket
import subprocess
import time

import pytest
import tiny
from conftest import BUILD, clean_environment, run

TRAIN = BUILD / "trainer" / "memsieve-train"

# A file server that stops to answer: reads of train.h5 wait while the file `hang` is there.
HANGING_READS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>
static void wait_for_the_server(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 8 || memcmp(path + n - 8, "train.h5", 8) != 0) return;
  while (access("hang", F_OK) == 0) { FILE* mark = fopen("hangs", "w"); if (mark) fclose(mark); usleep(20000); }
}
ssize_t pread(int fd, void* to, size_t size, off_t at) {
  wait_for_the_server(fd);
  return ((ssize_t (*)(int, void*, size_t, off_t))dlsym(RTLD_NEXT, "pread"))(fd, to, size, at);
}
ssize_t pread64(int fd, void* to, size_t size, off_t at) { return pread(fd, to, size, at); }
ssize_t read(int fd, void* to, size_t size) {
  wait_for_the_server(fd);
  return ((ssize_t (*)(int, void*, size_t))dlsym(RTLD_NEXT, "read"))(fd, to, size);
}
"""


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    return tmp_path


@pytest.fixture
def hanging(folder):
    (folder / "hang.c").write_text(HANGING_READS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "hang.so", folder / "hang.c", "-ldl"], check=True)
    return {"LD_PRELOAD": str(folder / "hang.so")}


def start(folder, *settings, **environment):
    words = [TRAIN, "--config", "run.yaml", "--resume-from", "auto", *(part for word in settings for part in ("--set", word))]
    return subprocess.Popen([str(word) for word in words], cwd=folder, env=clean_environment(**environment), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def stop_when(process, there, number=signal.SIGTERM, seconds=60):
    """Sends the signal as soon as `there()`; the exit code, what was said, and how long the process lived on."""
    try:
        deadline = time.monotonic() + seconds
        while not there():
            assert process.poll() is None and time.monotonic() < deadline, "it did not come to where it should be stopped"
            time.sleep(0.01)
        process.send_signal(number)
        sent = time.monotonic()
        said = process.communicate(timeout=seconds)[1]
        return process.returncode, said, time.monotonic() - sent
    finally:
        process.kill()
        process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def one_of_two(rank, port):
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_peers_are_awaited(folder, port, number):
    code, said, seconds = stop_when(start(folder, **one_of_two(0, port)), lambda: listens(port), number)
    assert code == 143 and seconds < 20 and "stopped by a signal" in said, said
    assert not (folder / "run").exists()


def test_a_signal_while_the_first_read_hangs(folder, hanging):
    (folder / "hang").touch()
    code, said, seconds = stop_when(start(folder, **hanging), (folder / "hangs").exists)
    assert code == 143 and seconds < 20 and "no step was under way" in said, said


def test_a_signal_while_a_read_of_a_step_hangs(folder, hanging):
    tiny.write_data(folder / "train.h5", 4000, 1)  # more than HDF5 keeps of a file by itself
    settings = ("max_train_steps=100000", "checkpointing_steps=2", "checkpoints_total_limit=2", "data.cache_mb=0", "stop_seconds=2")

    def hangs():
        if (folder / "run" / "checkpoints" / "step-000004").exists():
            (folder / "hang").touch()
        return (folder / "hangs").exists()
    process = start(folder, *settings, **hanging)
    code, said, seconds = stop_when(process, hangs)
    assert code == 143 and seconds < 30 and "did not end within stop_seconds" in said, said
    (folder / "hang").unlink()
    done = max(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*") if path.name[5:].isdigit())
    resumed = start(folder, f"max_train_steps={done + 2}", *settings[1:])
    assert "done" in resumed.communicate(timeout=60)[1] and resumed.returncode == 0


def test_a_signal_between_steps_leaves_a_checkpoint(folder):
    process = start(folder, "max_train_steps=100000", "stop_seconds=60", "checkpointing_steps=0")
    code, said, _ = stop_when(process, lambda: (folder / "run" / "metrics.jsonl").exists() and
                              (folder / "run" / "metrics.jsonl").stat().st_size > 0)
    assert code == 143 and "stopped by a signal after" in said, said
    assert list((folder / "run" / "checkpoints").glob("step-*/state.json"))


def test_a_peer_that_dies_before_it_comes(folder, port):
    waits = start(folder, "rendezvous_seconds=3", **one_of_two(0, port))
    dies = start(folder, "no_such_key=1", **one_of_two(1, port))
    try:
        assert dies.wait(timeout=60) == 2
        said = waits.communicate(timeout=60)[1]
    finally:
        waits.kill()
    assert waits.returncode == 4 and f"rank 1 of 2 did not come to 127.0.0.1:{port} within 3 s" in said, said


def test_a_run_folder_in_any_encoding_is_resumed(folder):
    name = os.fsdecode("bilder-\xe4\xf6".encode("latin-1"))  # no UTF-8
    for steps, resume in ((2, []), (4, ["--resume-from", "auto"]), (4, ["--resume-from", f"{name}/checkpoints/step-000002"])):
        result = subprocess.run([TRAIN, "--config", "run.yaml", "--set", f"output_dir={name}", "--set", f"max_train_steps={steps}", *resume],
                                cwd=folder, env=clean_environment(), stderr=subprocess.PIPE, timeout=120)
        assert result.returncode == 0, result.stderr
    assert (folder / name / "checkpoints" / "step-000004" / "state.json").exists()


def test_a_configuration_that_is_no_file(folder):
    os.mkfifo(folder / "pipe.yaml")
    result = run(TRAIN, "--config", "pipe.yaml", cwd=folder, timeout=30)
    assert result.returncode == 2 and "pipe.yaml: is not a file but a pipe" in result.stderr
