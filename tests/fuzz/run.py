"""Builds the fuzz targets, runs each for a while and prints what came of it. scripts/fuzz.sh is its front."""
import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import seeds

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
TARGETS = re.findall(r"^fuzz_target\((\w+)", (Path(__file__).parent / "CMakeLists.txt").read_text(), re.M)
MOST_CRASHES = 10
TIMEOUT = 20  # seconds for one input
# An input may ask for more memory than there is, which must be refused like any other mistake in it. Leaks are looked for where
# all memory is our own.
ASAN = "allocator_may_return_null=1:detect_leaks={leaks}"
OWN_MEMORY = ("yaml", "unet_config", "safetensors_index", "plugin_stamp")


@dataclass
class Outcome:
    inputs: int = 0
    coverage: int = 0
    crashes: list[tuple[str, str]] = field(default_factory=list)
    """(what was said, file with the input)"""
    halts: int = 0
    """of the machine, which look like inputs that take too long"""


def build(targets):
    def step(what, *command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line for line in (done.stdout + done.stderr).splitlines() if re.search("error|Error", line)]
            sys.exit(f"fuzz: {what} failed: {errors[0] if errors else done.stdout[-300:]} (command: {' '.join(map(str, command))})")

    if not (BUILD / "build.ninja").exists():
        step("configuring", "cmake", "-S", Path(__file__).parent, "-B", BUILD, "-G", "Ninja", "-DCMAKE_C_COMPILER=clang",
             "-DCMAKE_CXX_COMPILER=clang++", f"-DMEMSIEVE_PYTHON={sys.executable}")
    step("building", "cmake", "--build", BUILD, "-j", os.environ.get("MEMSIEVE_COMPILE_JOBS", "1"), "--target", *targets)


def what_was_said(log):
    for pattern in (r"^== does not hold: .*", r"^==\d+==\s*ERROR: .*", r".*: runtime error: .*", r"^terminate called .*(?:\n  what\(\).*)?"):
        if match := re.search(pattern, log, re.M):
            return match[0].replace("\n", " ")[:300]
    return "it ended without a word"


def is_quick(binary, path):
    """Whether an input that took too long does not when it is tried alone: then the machine had halted, not the target."""
    done = subprocess.run([str(binary), f"-timeout={TIMEOUT}", str(path)], capture_output=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "ASAN_OPTIONS": ASAN.format(leaks=0)})
    return done.returncode == 0


def fuzz(binary, corpora, crashes, seconds, seed, leaks):
    """Runs one target; after a crash it goes on with another seed for the rest of the time."""
    outcome, end = Outcome(), time.monotonic() + seconds
    crashes.mkdir(parents=True, exist_ok=True)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    while (left := round(end - time.monotonic())) > 0 and len(outcome.crashes) < MOST_CRASHES:
        with tempfile.TemporaryDirectory(prefix="memsieve-fuzz-", dir=place) as scratch:
            before = set(crashes.iterdir())
            command = [binary, f"-max_total_time={left}", f"-seed={seed + len(outcome.crashes) + outcome.halts if seed else 0}", "-print_final_stats=1",
                       f"-timeout={TIMEOUT}", "-rss_limit_mb=4096", f"-artifact_prefix={crashes}/", *corpora]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace",
                                  cwd=scratch, env={**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1",
                                       "ASAN_OPTIONS": ASAN.format(leaks=int(leaks)), "UBSAN_OPTIONS": "print_stacktrace=1"})
        outcome.inputs += sum(int(n) for n in re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr))
        outcome.coverage = max([outcome.coverage, *(int(n) for n in re.findall(r"\bcov: (\d+)", done.stderr))])
        if done.returncode == 0:
            break
        new = sorted(set(crashes.iterdir()) - before)
        (crashes / "log").write_text(done.stderr)
        if new and new[0].name.startswith("timeout-") and is_quick(binary, new[0]):
            new[0].unlink()
            outcome.halts += 1
            continue
        outcome.crashes.append((what_was_said(done.stderr), str(new[0]) if new else "no file"))
    return outcome


def table(outcomes):
    lines = ["| target | inputs | coverage | crashes |", "| --- | ---: | ---: | ---: |"]
    for name, outcome in outcomes.items():
        lines.append(f"| {name} | {outcome.inputs:,} | {outcome.coverage:,} | {len(outcome.crashes)} |")
    return "\n".join(lines)


def report(outcomes):
    """Prints the table and every crash; the exit code."""
    print(table(outcomes))
    for name, outcome in outcomes.items():
        if outcome.halts:
            print(f"fuzz: {name}: the machine halted {outcome.halts} times", file=sys.stderr)
        for said, path in outcome.crashes:
            print(f"fuzz: {name}: {said}\nfuzz: {name}: again with {BUILD / name} {path}", file=sys.stderr)
        if outcome.inputs == 0:
            print(f"fuzz: {name}: took no input", file=sys.stderr)
    return 1 if any(outcome.crashes or outcome.inputs == 0 for outcome in outcomes.values()) else 0


def main():
    parser = argparse.ArgumentParser(prog="scripts/fuzz.sh", allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=BUILD / "corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"no target '{unknown[0]}'; there are {', '.join(TARGETS)}")
    targets = options.targets or TARGETS
    build(targets)

    def one(name):
        corpora = [options.corpus.resolve() / name, *seeds.folders(name, BUILD / "seeds")]
        corpora[0].mkdir(parents=True, exist_ok=True)
        return fuzz(BUILD / name, corpora, BUILD / "crashes" / name, options.seconds, options.seed, name in OWN_MEMORY)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        return report(dict(zip(targets, pool.map(one, targets))))


if __name__ == "__main__":
    sys.exit(main())
