"""Two machines, each a network namespace with a name, an address and an /etc/hosts of its own, started by torchrun and by SLURM's
variables: the parameters are those of the same two ranks on one machine."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from conftest import BUILD, clean_environment, torchrun

TRAIN = BUILD / "trainer" / "memsieve-train"
STEPS = 6
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc_per_node", "1")


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines():
    """Names of two namespaces that reach each other as host0 and host1. On each its own name means 127.0.1.1, as Debian has it."""
    if not shutil.which("ip"):
        pytest.skip("no iproute2 here")
    names = [f"memsieve{os.getpid()}-{i}" for i in range(2)]
    made = [ip("netns", "add", name) for name in names]
    try:
        if any(m.returncode for m in made):
            pytest.skip("network namespaces cannot be made here: " + " ".join(m.stderr.strip() for m in made))
        ends = [f"ms{os.getpid() % 100000}-{i}" for i in range(2)]
        assert ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]).returncode == 0
        for i, (name, end) in enumerate(zip(names, ends)):
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"10.77.0.{i + 1}/24", "dev", end), ("link", "set", end, "up"),
                          ("route", "add", "default", "via", f"10.77.0.{2 - i}")):
                assert ip("-n", name, *words).returncode == 0, words
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 host{i}\n10.77.0.{2 - i} host{1 - i}\n")
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once, where the real one would not answer
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def command(folder, name, *settings):
    words = [f"output_dir={name}", f"max_train_steps={STEPS}", "train_batch_size=2", *settings]
    return [TRAIN, "--config", folder / "run.yaml", *(part for word in words for part in ("--set", word))]


def listening_at(machine, port):
    """Where somebody listens at the port on that machine, as /proc/net writes it."""
    tables = ip("netns", "exec", machine, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.splitlines()
    rows = [line.split() for line in tables if line.split()[0] != "sl"]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def await_listener(running, machine, port):
    while not (found := listening_at(machine, port)):
        assert running.poll() is None
        time.sleep(0.02)
    return found


def train_on(machines, folder, *commands, meanwhile=lambda running: None):
    """One command a machine, in its namespace and under its name, with its variables; all must succeed."""
    running = []
    for i, (name, (variables, words)) in enumerate(zip(machines, commands)):
        line = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname host{i}; exec "$@"', "sh", *words]
        running.append(subprocess.Popen([str(word) for word in line], cwd=folder, env=clean_environment(**variables), text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        meanwhile(running)
        said = [process.communicate(timeout=150)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n----\n".join(said)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A folder with the run on one machine in one/."""
    folder = tmp_path_factory.mktemp("machines")
    tiny.write_run(folder)
    result = torchrun(2, *command(folder, "one"), cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def parameters(folder):
    return (folder / "checkpoints" / f"step-{STEPS:06d}" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_torchrun_on_two_machines(machines, expected):
    words = [*TORCHRUN, "--nnodes", "2", "--rdzv-id", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "host0:29400",
             *command(expected, "torchrun")]
    train_on(machines, expected, ({}, words), ({}, words))
    assert parameters(expected / "torchrun") == parameters(expected / "one")


def test_slurm_variables_on_two_machines(machines, expected):
    def variables(rank):
        return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_ID": "0",
                "SLURM_NODEID": str(rank), "SLURM_STEP_NODELIST": "host[0-1]", "SLURM_JOB_ID": "77"}
    words = command(expected, "slurm")
    seen = []
    train_on(machines, expected, (variables(0), words), (variables(1), words),
             meanwhile=lambda running: seen.append(await_listener(running[0], machines[0], 15077)))
    assert seen == [{"01004D0A"}]  # 10.77.0.1, which leads to the other machine, and nowhere else
    assert parameters(expected / "slurm") == parameters(expected / "one")
