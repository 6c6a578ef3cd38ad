"""docs/finetune_stable_diffusion.md: its commands, one after the other as they stand there, on random pipelines.

What is replaced: sizes (resolution, steps, batch, processes), the device, and what is there already or would not end (setup,
build, TensorBoard's server). SLURM's commands are stood in for by small scripts, and GPUs by tests/stub_cuda, so that precision and
devices are the ones that the configurations ask for; where torch has no CUDA, a CPU is."""
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import stub_gpu
import tiny_pipeline
import yaml
from conftest import BUILD, ROOT, clean_environment, run
from memsieve.cli import main as memsieve_main

DOC = (ROOT / "docs" / "finetune_stable_diffusion.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", DOC, re.S | re.M)
STEPS, MORE = 4, 6  # of a run, and of one that is resumed
ON_CPU = {"device": "cpu", "mixed_precision": "no"}
SMALL = {"train_batch_size": 2, "gradient_accumulation_steps": 1, "lr_warmup_steps": 1, "checkpointing_steps": 2,
         "validation.every": 2, "validation.draws": 1, "sampling.every": 2, "sampling.num_inference_steps": 2,
         "sieve.reference.draws": 2, "sieve.held_out.rows": 2, "sieve.held_out.every": 1, "sieve.standardise.min_count": 2,
         "sieve.standardise.window": 4, "max_train_steps": STEPS}

SBATCH = """#!/bin/bash
export SLURM_JOB_ID=$$ SLURM_JOB_NODELIST=localhost SLURM_CPUS_PER_TASK=1
exec bash "$@"
"""
SCONTROL = """#!/bin/bash
echo localhost
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done  # --cpus-per-task=1 --kill-on-bad-exit=1
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_STEP_NUM_TASKS=2 \
    SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURM_TASKS_PER_NODE=2 "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit; done
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(command, gpus):
    values = {**SMALL, **({} if gpus else ON_CPU), **({"max_train_steps": MORE} if "--resume-from" in command else {})}
    return "".join(f" --set {name}={value}" for name, value in values.items())


def small(block, gpus):
    """The block with its sizes made small; every replacement must find its place."""
    lines = []
    for command in block.replace("\\\n", " ").strip().splitlines():
        if re.match(r"scripts/(setup|build)\.sh", command):
            assert (ROOT / command).exists()
            continue
        if command.startswith("export PATH="):
            continue
        if "memsieve prepare" in command:
            command = re.sub(r"--resolution \d+", "--resolution 16", command) + " --held-out 4 --validation 4" + ("" if gpus else " --device cpu")
        if re.search(r"memsieve-train|sbatch", command):
            command += settings(command, gpus)
        command = re.sub(r"--nproc_per_node \d+", "--nproc_per_node 1" if "--nnodes" in command else "--nproc_per_node 2", command)
        if "--nnodes" in command:
            command = command.replace("host0:29400", f"127.0.0.1:{free_port()}")
        else:
            command = command.replace("torchrun ", "torchrun --standalone ")
        lines.append(command.replace("tensorboard --logdir", "tensorboard --inspect --logdir"))
    return "\n".join(lines)


def small_python(block):
    block = re.sub(r"step-(\d+)", lambda m: f"step-{MORE if 'sd15' in block else STEPS:06}", block)
    return block.replace("num_inference_steps=25", "num_inference_steps=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the repository's, with models/sd15, models/sdxl, pictures and a SLURM of our own."""
    folder = tmp_path_factory.mktemp("doc")
    for name in ("configs", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    tiny_pipeline.stable_diffusion(folder / "models" / "sd15")
    tiny_pipeline.stable_diffusion(folder / "models" / "sd21", "v_prediction")
    tiny_pipeline.stable_diffusion_xl(folder / "models" / "sdxl")
    tiny_pipeline.pictures(folder / "pictures", 24)
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    (folder / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    return folder


def environment(place, gpus):
    path = f"{place / 'bin'}:{Path(sys.executable).parent}:{BUILD / 'trainer'}:{os.environ['PATH']}"
    return clean_environment(PATH=path, HF_HUB_OFFLINE="1", **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}))


def start(place, language, text, gpus):
    """The stand-in for GPUs, which takes a second to load, is for what bash runs, and not for bash."""
    stub = stub_gpu.environment(gpus, compute=True) if gpus else {}
    exports = "".join(f"export {name}='{value}'\n" for name, value in stub.items())
    command, more = (["bash", "-euo", "pipefail", "-c", exports + text], {}) if language == "bash" else ([sys.executable, "-c", text], stub)
    return subprocess.Popen(command, cwd=place, env=environment(place, gpus) | more, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def ran(place):
    """The same folder when all commands have run."""
    gpus = 2 if stub_gpu.AVAILABLE else 0
    assert len(BLOCKS) >= 12
    for language, block in BLOCKS:
        text = small(block, gpus) if language == "bash" else small_python(block)
        machines = int((re.search(r"--nnodes (\d+)", text) or [0, 1])[1])
        running = [start(place, language, text, gpus) for _ in range(machines)]
        for process in running:
            said = process.communicate(timeout=300)[0]
            assert process.returncode == 0, f"{text}\n\n{said}"
            assert "--inspect" not in text or "train/loss" in said, said
    return place


def test_every_command_works(ran):
    runs = {path.name for path in (ran / "runs").iterdir()}
    assert runs == {"sd15", "sd15_off", "two_machines", "slurm", "measure", "sdxl_lora"}
    for picture in ("sd15/samples/step-000002.png", "sd15/suspects.png", "sd15/bicycle.png", "sdxl_lora/bicycle.png"):
        assert (ran / "runs" / picture).stat().st_size > 0
    for name in ("sd15", "slurm", "two_machines"):
        about = (ran / "runs" / name / "run.json").read_text()
        assert '"world_size": 2' in about and ("cuda:0" if stub_gpu.AVAILABLE else '"cpu"') in about


@pytest.mark.parametrize("model, config", [("sd15", "sd15"), ("sd21", "sd21"), ("sdxl", "sdxl_lora")])
def test_configurations_are_complete(ran, monkeypatch, model, config):
    """With the sizes that they name themselves, but for the resolution and a batch that the few pictures can fill."""
    monkeypatch.chdir(ran)
    out = ran / "data" / model
    if not out.exists():  # of a pipeline that the page's commands do not prepare for
        assert memsieve_main(["prepare", "--images", "pictures", "--pipeline", f"models/{model}", "--out", str(out), "--resolution", "16",
                              "--held-out", "4", "--validation", "4", "--device", "cpu", "--prompts", "prompts.txt"]) == 0
    words = [f"data.{part}={out}/{part}.h5" for part in ("train", "held_out", "validation", "prompts")]
    words += ["device=cpu", "train_batch_size=2", "gradient_accumulation_steps=1", f"output_dir=runs/check_{model}"]
    result = run(BUILD / "trainer" / "memsieve-train", "--config", f"configs/{config}.yaml", "--dry-run",
                 *[word for setting in words for word in ("--set", setting)])
    assert result.returncode == 0, result.stderr
    assert "sieve on" in result.stdout + result.stderr
    given = (ROOT / "configs" / f"{config}.yaml").read_text()
    assert f"pretrained: models/{model} " in given and f"output_dir: runs/{config}\n" in given


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl_lora"])
def test_a_configuration_decides_alike_on_all_its_gpus_and_on_one(name):
    """Held-out rows are probed four at a time, so each GPU must get whole fours (docs/collectives.md)."""
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    gpus = int(re.search(r"rows a step on (\d+) GPUs", text)[1])
    assert yaml.safe_load(text)["sieve"]["held_out"]["rows"] % (4 * gpus) == 0
