#!/usr/bin/env python3
"""The parts of the GPU kit: parts.py NAME [--quick], in the folder that run.py has unpacked. Figures are lines `results: {...}`, of
which later ones add to earlier ones; the exit code is 0, 77 where a part needs a GPU, or another where it failed."""
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "release"
STEP = BUILD / "bench" / "memsieve-bench-train-step"
MARK, NEEDS_GPU = "results: ", 77
EVERY = 16   # steps, of which one has held-out and revisited rows (configs/default.yaml): what is timed has as many of them
BF16 = "mixed_precision=bf16"


def report(**figures):
    print(MARK + json.dumps(figures), flush=True)


def gpus():
    """Number of GPUs that the driver shows, without loading torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def need_gpu(why):
    if gpus() == 0:
        print(why)
        sys.exit(NEEDS_GPU)


def call(*command, env=None):
    """Runs a program, passes its output on as it comes and returns it; an error if it fails."""
    lines = []
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                          env=dict(os.environ, **(env or {}))) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if process.returncode != 0:
        said = [line for line in lines if line.strip()]
        sys.exit(f"{Path(command[0]).name} ended with code {process.returncode}: {said[-1] if said else 'no output'}")
    return lines


def objects(lines):
    """The lines that are JSON objects, in one dictionary."""
    found = {}
    for line in lines:
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def settings(*words):
    return [part for word in words for part in ("--set", word)]


def driver_version():
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True,
                              timeout=10).stdout.split()
        return said[0] if said else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def machine(quick):
    import torch
    report(cores=len(os.sched_getaffinity(0)), memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
           python=platform.python_version(), libc="-".join(platform.libc_ver()), torch=torch.__version__, cuda=torch.version.cuda,
           gpu=None, gpus=torch.cuda.device_count(), driver=driver_version())
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        report(gpu=about.name, gpu_memory_gib=round(about.total_memory / 2**30, 1), multiprocessors=about.multi_processor_count,
               cudnn=torch.backends.cudnn.version(), nccl=".".join(map(str, torch.cuda.nccl.version())))


def cuda_tests(quick):
    need_gpu("the tests tagged [.cuda] need a GPU")
    for program in sorted((BUILD / "tests").iterdir()):
        out = "\n".join(call(program, "[.cuda]"))
        passed = re.search(r"All tests passed \((\d+) assertions? in (\d+) test cases?\)", out)
        if not passed:
            sys.exit(f"{program.name}: no test ran")
        report(**{program.name: {"assertions": int(passed[1]), "test_cases": int(passed[2])}})


def no_waiting(quick):
    """No step of ours makes the host wait for the GPU, by CUDA's synchronisation debug mode."""
    need_gpu("whether the host waits for the GPU in a step needs a GPU")
    cases = {"ours": [], "published": [], "plain": ["filter=off"], "ours_bf16": [BF16], "ours_fp16": ["mixed_precision=fp16"]}
    for name, more in cases.items():
        config = "configs/demo_published.yaml" if name == "published" else "configs/demo.yaml"
        lines = call(STEP, "--config", config, *settings("train_batch_size=32", *more), "--sync-check", 20,
                     env={"TORCH_SHOW_CPP_STACKTRACES": "1"})
        report(**{name: objects(lines)})


def demo(quick):
    """The demo's two runs in one process each, and what its report says of them."""
    if not quick:
        need_gpu("the demo's whole runs need a GPU; scripts/demo.sh makes them on a CPU, --quick a few steps")
    few = ["max_train_steps=4", "sampling.every=2", "sampling.num_inference_steps=2", "validation.every=2", "validation.draws=1",
           "checkpointing_steps=4", "train_batch_size=8", "sieve.block_rows=8"]
    runs = {}
    for name, more in (("off", ["filter=off"]), ("on", ["sieve.reference.kind=none"] if quick else [])):
        runs[name] = ROOT / "runs" / name
        began = time.monotonic()
        call(BUILD / "trainer" / "memsieve-train", "--config", "configs/demo.yaml",
             *settings(f"output_dir={runs[name]}", "train_batch_size=32", *more, *(few if quick else [])))
        report(**{f"seconds_{name}": round(time.monotonic() - began, 1)})
    from memsieve.reports.comparison import Comparison, clean
    from memsieve.reports.run import Run
    comparison = Comparison(*(Run.read(runs[name]) for name in ("off", "on")), str(ROOT / "data" / "demo"))
    report(**clean(comparison.summary()))


def overhead(quick):
    rounds, steps = (1, 1) if quick else (2, EVERY)
    report(**objects(call(BUILD / "bench" / "memsieve-bench-overhead", "--rounds", rounds, "--steps", steps)))


def train_step(unet, latents, batch, quick, *more):
    """images/s, parts of a step, peak memory, and what the GPU's kernels do: torch's profiler inside our own program."""
    if not quick:
        need_gpu(f"a step of {unet} needs a GPU; --quick takes a small UNet")
    else:
        unet, latents, batch = "sd15_quarter", 8, 2
    case = ROOT / "data" / "bench" / f"{unet}-{latents}-{batch}"
    call(sys.executable, ROOT / "bench" / "make_case.py", "--unet", unet, "--latents", latents, "--batch", batch, "--out", case)
    rounds, steps = (1, 1) if quick else (1, EVERY)
    always = ["sieve.reference.kind=none"]   # a pass before the first step
    figures = objects(call(STEP, "--config", case / "ours.yaml", *settings(*always, *more, *([] if quick else [BF16])),
                           "--rounds", rounds, "--steps", steps, *([] if quick else ["--kernels"])))
    kinds = figures.get("kernels", {}).get("kinds_ms")
    if kinds:
        busy = figures["kernels"]["gpu_busy_ms"]
        figures["share_of_gpu_time"] = {kind: round(ms / busy, 4) for kind, ms in kinds.items()}
        figures["gpu_busy_share_of_step"] = round(busy / figures["step_ms"], 4)
    report(**figures)


def train_step_sd15(quick):
    train_step("sd15", 64, 16, quick)


def train_step_sdxl_lora(quick):
    train_step("sdxl", 128, 4, quick, "lora.rank=16", "gradient_checkpointing=true")


def compare(quick, batch, *more):
    if not quick:
        need_gpu("the whole Stable Diffusion UNet, ours beside Python's, needs a GPU; --quick takes the demo's")
    case = ["demo", "--batch", 4] if quick else ["sd15", "--batch", batch, "--apart"]
    words = ["--variants", "published", "--compile", "none"] if quick else more
    report(**objects(call(sys.executable, ROOT / "bench" / "compare_python.py", "--precision", "bf16", "--rounds", 1,
                          "--steps", 1 if quick else 5, "--cases", *case, *words)))


def compare_python_32(quick):
    compare(quick, 32, "--variants", "published", "--compile", "none")


def compare_python_8(quick):
    compare(quick, 8, "--variants", "published,plain,ours", "--compile", "all", "--compile-seconds", 150)


# name: (part, seconds that it may take). The last, with torch.compile, gets what is left.
PARTS = {"machine": (machine, 40), "cuda_tests": (cuda_tests, 60), "no_waiting": (no_waiting, 60), "demo": (demo, 120),
         "overhead": (overhead, 60), "train_step_sd15": (train_step_sd15, 70), "train_step_sdxl_lora": (train_step_sdxl_lora, 110),
         "compare_python_32": (compare_python_32, 110), "compare_python_8": (compare_python_8, 300)}

if __name__ == "__main__":
    PARTS[sys.argv[1]][0]("--quick" in sys.argv[2:])
