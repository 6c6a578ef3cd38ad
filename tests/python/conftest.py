"""What the Python tests share: where the build is, and how a program of ours is run."""
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MEMSIEVE_BUILD", ROOT / "build" / "release"))
# The Python package: with the module, where that is built; without it, everything but the sieve works.
PACKAGE = BUILD / "python" if any((BUILD / "python" / "memsieve").glob("_core*.so")) else ROOT / "python"
sys.path.insert(0, str(PACKAGE))
# Variables of a launcher that may be around the tests must not reach the programs under test.
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_USE_AGENT_STORE")


def clean_environment(**more):
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER and not k.startswith("SLURM_")}
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), *filter(None, [environment.get("PYTHONPATH")])])
    environment.update(more)
    return environment


def run(*command, timeout=300, cwd=None, **environment):
    """Runs a program to its end; output is kept as text."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout, cwd=cwd,
                          env=clean_environment(**environment))


def run_ok(*command, **options):
    result = run(*command, **options)
    assert result.returncode == 0, f"{command}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def torchrun(processes, *command, **options):
    return run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc_per_node", processes,
               *command, **options)


def launcher(processes):
    """Variables of each rank as torchrun sets them; none for a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1",
                 MASTER_PORT=port, TORCHELASTIC_RUN_ID="tests") if processes > 1 else {} for rank in range(processes)]


GRACE = 10  # seconds that ranks have to end by themselves once one of them has failed


def run_ranks(processes, command, timeout, start, code_of, kill):
    """Ranks made by start(variables, output, errors), until all have ended; the exit code is that of a rank that failed, or 0, and those
    that are late are killed."""
    deadline, failed = time.monotonic() + timeout, 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        ranks = [start(variables, output, errors) for variables in launcher(processes)]
        while (running := [rank for rank in ranks if code_of(rank) is None]) and time.monotonic() < deadline:
            if not failed and (failed := next(filter(None, map(code_of, ranks)), 0)):
                deadline = min(deadline, time.monotonic() + GRACE)
            time.sleep(0.005)
        for rank in running:
            kill(rank)
        if running and not failed:
            raise subprocess.TimeoutExpired(command, timeout)
        output.seek(0), errors.seek(0)
        return subprocess.CompletedProcess(command, failed or next(filter(None, map(code_of, ranks)), 0), output.read(), errors.read())


def on_ranks(processes, *command, timeout=300, cwd=None, **environment):
    """As torchrun, which takes longer to start than most programs of ours run; the exit code is that of a rank that failed."""
    command = [str(word) for word in command]

    def start(variables, output, errors):
        return subprocess.Popen(command, stdout=output, stderr=errors, cwd=cwd, env=clean_environment(**variables, **environment))

    return run_ranks(processes, command, timeout, start, subprocess.Popen.poll, lambda rank: (rank.kill(), rank.wait()))


def forked(processes, script, *words, timeout=300, **environment):
    """As on_ranks(processes, sys.executable, script, *words), without starting Python: each rank is a fork of this process, which has
    imported already what takes seconds to import. It must not have trained anything itself."""
    command = [str(word) for word in (script, *words)]

    def main(variables, output, errors):
        for file, number in ((output, 1), (errors, 2)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        variables = clean_environment(**variables, **environment)
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = command
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(command[0], run_name="__main__")

    def start(*args):
        rank = multiprocessing.get_context("fork").Process(target=main, args=args)
        rank.start()
        return rank

    return run_ranks(processes, command, timeout, start, lambda rank: rank.exitcode, lambda rank: (rank.kill(), rank.join()))


def assert_refused(result, code, *words):
    """The program ended with `code` and said why in one line on stderr that holds all the words."""
    said = result.stderr.strip()
    assert result.returncode == code, f"exit code {result.returncode}, not {code}: {said}\n{result.stdout}"
    assert said and len(said.splitlines()) == 1, f"not one line:\n{said}"
    for word in words:
        assert word in said, f"'{word}' is not in: {said}"


def configure_and_build(source, prefix, folder):
    """Builds a project that stands outside the tree against the memsieve installed at `prefix`; returns its build folder."""
    outside = folder / source.name
    shutil.copytree(source, outside, ignore=shutil.ignore_patterns("build"))
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    run_ok("cmake", "-S", outside, "-B", outside / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
           f"-DCMAKE_PREFIX_PATH={prefix}", *launcher)
    run_ok("cmake", "--build", outside / "build", timeout=600)
    return outside / "build"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("installed")
    run_ok("cmake", "--install", BUILD, "--prefix", prefix)
    return prefix


def pytest_sessionfinish(session, exitstatus):
    """A file that is skipped as a whole, and says why, is no failure, as it is without a test."""
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped")
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and skipped:
        session.exitstatus = pytest.ExitCode.OK
