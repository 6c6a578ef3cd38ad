"""Faults brought about on purpose in runs of a tiny model: kills, stops, full disks, truncated files. Each trial compares the end
of the run with that of one that nothing happened to, bit for bit. scripts/faults.sh is the front; docs/reliability.md has figures."""
import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import tiny
from conftest import BUILD, clean_environment
from test_ledger import visits
from test_restart import FILES, SIEVE, rank_of, steps
from test_restart import start as start_torchrun

TRAIN = BUILD / "trainer" / "memsieve-train"
SETTINGS = ("use_ema=true", "checkpointing_steps=20", "sieve.ledger.flush_every=5", *SIEVE)
LIMIT = 200  # seconds that a run may take; a hang is a broken promise
TRIES = 5  # at bringing a fault about


class Broken(Exception):
    """A promise that was not kept."""


class Missed(Exception):
    """A trial in which all went well because the fault met nothing: the run had ended before."""


def require(holds, what):
    if not holds:
        raise Broken(what)


class Run:
    """One process of memsieve-train, or a rank of several."""

    def __init__(self, folder, name, *settings, prefix=(), **place):
        words = [*prefix, TRAIN, "--config", "run.yaml", "--resume-from", "auto",
                 *(part for word in (f"output_dir={name}", *SETTINGS, *settings) for part in ("--set", word))]
        self.process = subprocess.Popen([str(word) for word in words], cwd=folder, env=clean_environment(**place), text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.said = None  # until it has ended

    def end(self, seconds=LIMIT):
        """Its exit code."""
        if self.said is not None:
            return self.process.returncode
        try:
            self.said = self.process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            raise Broken(f"still running after {seconds:.0f} s: {self.said[-500:]}") from None
        return self.process.returncode

    def kill(self):
        self.process.kill()
        self.said = self.process.communicate()[0]

    def must_end(self, code, *words, seconds=LIMIT):
        found = self.end(seconds)
        last = self.said.strip().splitlines()[-1] if self.said.strip() else ""
        require(found == code, f"exit code {found}, not {code}: {last}")
        for word in words:
            require(word in self.said, f"'{word}' was not said: {last}")


def wait_until(holds, *runs):
    """Until `holds()`, or one of the runs has ended."""
    deadline = time.monotonic() + LIMIT
    while not holds() and all(run.process.poll() is None for run in runs):
        if time.monotonic() > deadline:
            for run in runs:
                run.kill()
            raise Broken(f"not so far after {LIMIT} s: {runs[0].said[-500:]}")
        time.sleep(0.005)


def two_ranks(folder, name, *settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [Run(folder, name, "train_batch_size=2", *settings, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)]


def require_same_end(mine, whole, ledger=True):
    last = max((whole / "checkpoints").glob("step-??????")).name
    for name in FILES:
        files = [path / "checkpoints" / last / name for path in (mine, whole)]
        require(files[0].exists() and files[0].read_bytes() == files[1].read_bytes(), f"{name} differs from an uninterrupted run's")
    require(steps(mine) == steps(whole), "metrics.jsonl differs from an uninterrupted run's")
    if ledger:
        rows = [visits(path / "ledger.h5")[1].tobytes() for path in (mine, whole)]
        require(rows[0] == rows[1], "the ledger differs from an uninterrupted run's")


@contextmanager
def fault():
    """A list for whether each fault of a trial met a run. Raises Missed at the end of a trial in which none did."""
    met = []
    yield met
    if not any(met):
        raise Missed


class Trials:
    """The trials of all kinds, in one folder, with runs of so many steps."""

    def __init__(self, folder, seed, run_steps):
        self.folder, self.random, self.count, self.run_steps = Path(folder), random.Random(seed), 0, run_steps
        tiny.write_run(self.folder, steps=run_steps)
        began = time.monotonic()
        Run(self.folder, "whole").must_end(0)
        self.seconds = time.monotonic() - began
        self.whole = self.folder / "whole"
        require(sum(step["dropped"] for step in steps(self.whole)) > 0, "rows are dropped, so that it matters which")
        self.pair = self.folder / "pair"
        for rank in two_ranks(self.folder, "pair"):
            rank.must_end(0)

    @contextmanager
    def run_folder(self):
        """A name for a run, whose folder goes when the trial ends."""
        self.count += 1
        name = f"trial{self.count}"
        try:
            yield name
        finally:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def wait(self, share=0.95):
        """Until a random moment of a run that has just been started."""
        time.sleep(self.random.uniform(0, share * self.seconds))

    def resume(self, name, whole=None, ledger=True, words=()):
        Run(self.folder, name).must_end(0, *words)
        require_same_end(self.folder / name, whole or self.whole, ledger)

    def checkpoints(self, name):
        return sorted((self.folder / name / "checkpoints").glob("step-??????"))

    def interrupted(self, name):
        """A run that was killed after its second checkpoint."""
        run = Run(self.folder, name)
        wait_until(lambda: len(self.checkpoints(name)) >= 2, run)
        run.kill()
        require(self.checkpoints(name), run.said[-500:])

    def kill(self):
        """kill -9 of a run at any moment, now and then of the resumed one too"""
        with self.run_folder() as name, fault() as met:
            for _ in range(self.random.choice((1, 1, 2))):
                run = Run(self.folder, name)
                self.wait()
                met.append(run.process.poll() is None)
                run.kill()
            self.resume(name)

    def kill_rank(self):
        """kill -9 of one of two ranks under torchrun, which starts both anew"""
        with self.run_folder() as name, fault() as met:
            agent = start_torchrun(self.folder, name, f"max_train_steps={self.run_steps}", "checkpointing_steps=20",
                                   "sieve.ledger.flush_every=5")
            victim, deadline = None, time.monotonic() + LIMIT
            while victim is None and agent.poll() is None and time.monotonic() < deadline:
                victim = rank_of(agent, self.random.randrange(2), needed=False)
                time.sleep(0.01)
            if victim is None:
                if agent.poll() is None:
                    os.killpg(agent.pid, signal.SIGKILL)
                raise Broken(f"no rank was seen: {agent.communicate()[0][-500:]}")
            self.wait()
            try:
                os.kill(victim, signal.SIGKILL)
                met.append(True)
            except ProcessLookupError:
                pass  # it has ended
            try:
                said = agent.communicate(timeout=LIMIT)[0]
            except subprocess.TimeoutExpired:
                os.killpg(agent.pid, signal.SIGKILL)
                raise Broken(f"still running after {LIMIT} s: {agent.communicate()[0][-500:]}") from None
            require(agent.returncode == 0, said[-500:])
            require_same_end(self.folder / name, self.pair)

    def full_disk(self):
        """a full disk, then one with room again"""
        sizes = [path.stat().st_size for path in self.whole.rglob("*") if path.is_file()]
        with self.run_folder() as name, fault() as met:
            (self.folder / name).mkdir()
            room = int(self.random.uniform(0.1, 0.9) * sum(sizes))
            with small_disk(self.folder / name, room) as disk:
                run = Run(self.folder, f"{name}/run", prefix=disk.prefix)
                met.append(disk.mounted or run.end() != 0)  # a limit on single files may be above all of them
                if met[-1]:
                    run.must_end(3)
                    require(f"{name}/run" in run.said.strip().splitlines()[-1], run.said[-300:])
                disk.grow()
                self.resume(f"{name}/run")

    def stop_rank(self):
        """SIGSTOP of one of two ranks: the other leaves, and so does this one when it goes on"""
        with self.run_folder() as name, fault() as met:
            ranks = two_ranks(self.folder, name, "collective_seconds=3", "rendezvous_seconds=20")
            metrics = self.folder / name / "metrics.jsonl"
            wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, *ranks)
            time.sleep(self.random.uniform(0, 0.3 * self.seconds))
            stopped = ranks.pop(self.random.randrange(2))
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                code = ranks[0].end(40)
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            met.append(code == 4)
            require(code in (0, 4), f"exit code {code}, not 4: {ranks[0].said[-300:]}")
            require(stopped.end(40) in (0, 4), f"exit code {stopped.process.returncode}, not 4: {stopped.said[-300:]}")
            for run in two_ranks(self.folder, name):
                run.must_end(0)
            require_same_end(self.folder / name, self.pair)

    def pause(self):
        """SIGSTOP of a run for a second"""
        with self.run_folder() as name, fault() as met:
            run = Run(self.folder, name)
            self.wait()
            met.append(run.process.poll() is None)
            run.process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            run.process.send_signal(signal.SIGCONT)
            run.must_end(0)
            require_same_end(self.folder / name, self.whole)

    def cut_data(self):
        """a training set that is truncated while rows are read from it, then put back"""
        with self.run_folder() as name, fault() as met:
            path = self.folder / f"{name}.h5"
            shutil.copy(self.folder / "train.h5", path)
            run = Run(self.folder, name, f"data.train={path.name}", "data.cache_mb=0")
            self.wait(0.8)
            os.truncate(path, self.random.randrange(path.stat().st_size))
            met.append(run.end() != 0)
            if met[-1]:
                require(run.process.returncode == 3 and path.name in run.said.strip().splitlines()[-1],
                        f"exit code {run.process.returncode}: {run.said[-300:]}")
            path.unlink()
            self.resume(name)

    def cut_checkpoint(self):
        """a file of the newest checkpoint that was truncated: the one before it counts"""
        with self.run_folder() as name:
            self.interrupted(name)
            newest = self.checkpoints(name)[-1]
            path = self.random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
            os.truncate(path, self.random.randrange(path.stat().st_size))
            self.resume(name, words=[f"{newest.name}/{path.relative_to(newest)}", "passed over for"])

    def cut_ledger(self):
        """a ledger that was truncated: checkpoints go on without the rows that are gone"""
        with self.run_folder() as name:
            self.interrupted(name)
            path = self.folder / name / "ledger.h5"
            os.truncate(path, self.random.randrange(path.stat().st_size))
            self.resume(name, ledger=False)


KINDS = ("kill", "kill_rank", "full_disk", "stop_rank", "pause", "cut_data", "cut_checkpoint", "cut_ledger")


class SmallDisk:
    """A folder with little room: a file system of its own for root, elsewhere a limit on the size of a file."""

    def __init__(self, folder, room):
        self.folder, self.prefix = folder, ()
        self.mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(room // 1024, 4)}k", "tmpfs", folder],
                                                            capture_output=True).returncode == 0
        if not self.mounted:
            self.prefix = ("bash", "-c", f"trap '' XFSZ; ulimit -f {max(room // 16384, 1)}; exec \"$@\"", "-")

    def grow(self):
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", self.folder], check=True)

    def release(self):
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)


@contextmanager
def small_disk(folder, room):
    disk = SmallDisk(folder, room)
    try:
        yield disk
    finally:
        disk.release()


HEAD = "| fault | trials | kept | broken promises |\n| --- | ---: | ---: | ---: |"


def try_once(trial):
    """Repeats a trial until its fault has met a run."""
    for _ in range(TRIES):
        try:
            return trial()
        except Missed:
            pass
    raise Broken(f"the fault met no run in {TRIES} tries")


def try_all(counts, seed, run_steps):
    """Makes so many trials of each kind and prints a table of how they went, and each broken promise; how many were broken."""
    total = 0
    with tempfile.TemporaryDirectory(prefix="memsieve-faults-") as folder:
        trials = Trials(folder, seed, run_steps)
        print(HEAD, flush=True)
        for kind, count in counts.items():
            broken = 0
            for number in range(count):
                try:
                    try_once(getattr(trials, kind))
                except Broken as promise:
                    broken += 1
                    print(f"faults: {kind} {number + 1}: {promise}", file=sys.stderr, flush=True)
            print(f"| {getattr(Trials, kind).__doc__} | {count} | {count - broken} | {broken} |", flush=True)
            total += broken
    return total


def main():
    parser = argparse.ArgumentParser(prog="scripts/faults.sh", allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    counts = {kind: options.kills if kind == "kill" else options.each for kind in KINDS}
    began = time.monotonic()
    try:
        broken = try_all(counts, options.seed, options.steps)
    except Broken as promise:
        sys.exit(f"faults: the run that nothing happens to: {promise}")
    print(f"faults: {sum(counts.values())} trials in {time.monotonic() - began:.0f} s, {broken} broken promises")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
