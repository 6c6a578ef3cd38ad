"""What the host does when it trains on a GPU, on a machine without one: devices, dtypes, pinned memory, and what it waits for
(law 5). No kernel is run, so the numbers mean nothing; test_cuda_numbers.py looks at those."""
import json
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import stub_gpu
import tiny
import tiny_pipeline
from conftest import BUILD, PACKAGE, on_ranks, run, run_ok
from test_train_features import write_data

TRAIN = BUILD / "trainer" / "memsieve-train"
STEPS = 8
PUBLISHED = [*tiny.PUBLISHED, "sieve.threshold.drop=2"]
COMMON = ["device=cuda", "max_nonfinite_steps=1000000", "use_ema=true"]  # a norm that no kernel computes is not "finite"

PIPELINE_RUN = """seed: 3
data: {train: train.h5, held_out: held_out.h5, validation: held_out.h5, prompts: held_out.h5}
model: {pretrained: model}
train_batch_size: 4
checkpointing_steps: 4
validation: {every: 4, draws: 2}
sampling: {every: 4, num_inference_steps: 3, vae: model/vae}
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {scale: log}}
  held_out: {rows: 4, every: 2}
"""

pytestmark = stub_gpu.needed


def write_latents(path, rows, sdxl):
    """A set of distributions, as memsieve prepare makes for the tiny pipelines."""
    write_data(path, rows, 20 if sdxl else 8, rows, sdxl)
    with h5py.File(path, "r+") as file:
        file["latent_std"] = np.random.default_rng(rows).random(file["latents"].shape, np.float32)
        file["latents"].attrs["scaling_factor"] = 0.13025 if sdxl else 0.18215


def train(folder, *settings, steps=STEPS, out="run", **options):
    words = [word for setting in [*COMMON, f"max_train_steps={steps}", f"output_dir={out}", *settings] for word in ("--set", setting)]
    result = run(TRAIN, "--config", "run.yaml", *words, cwd=folder, **stub_gpu.environment(report=folder / "calls.json"), **options)
    assert result.returncode == 0, result.stderr + result.stdout
    return json.loads((folder / "calls.json").read_text())


def per_step(folder, *settings):
    """Calls of each kind in one step, from two runs of different length."""
    short, long = train(folder, *settings, out="short"), train(folder, *settings, steps=3 * STEPS, out="long")
    return {name: (long[name] - short.get(name, 0)) / (2 * STEPS) for name in long}


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    tiny.write_data(tmp_path / "forget.h5", 3, 9)
    return tmp_path


CASES = {
    "ours": [],
    "published": PUBLISHED,
    "plain": ["filter=off"],
    "accumulation": ["gradient_accumulation_steps=2", "snr_gamma=5"],
    "bf16": ["mixed_precision=bf16"],
    "fp16": ["mixed_precision=fp16"],
    "checkpointing": ["gradient_checkpointing=true", "mixed_precision=bf16"],
    "lora": ["lora.rank=2", "mixed_precision=fp16"],
    "forget": ["forget.data=forget.h5", "mixed_precision=fp16", "gradient_accumulation_steps=2"],
    "noise": ["noise_offset=0.1", "input_perturbation=0.1", "timestep_sampling=logit_normal", "allow_tf32=true"],
    "quantile": ["sieve.threshold.kind=quantile", "sieve.threshold.drop=0.9", "sieve.threshold.release=0.5",
                 "sieve.standardise.population=training", "sieve.held_out.rows=0"],
    "discounted": ["sieve.evidence.kind=discounted", "sieve.evidence.min_visits=1", "sieve.threshold.kind=rate", "sieve.probe.kind=budget",
                   "sieve.probe.likeness=3", "sieve.action.pass_over=true", "sieve.revisit.rows=2"],
    "pass_over": ["sieve.action.pass_over=true", "sieve.revisit.rows=2", "sieve.evidence.min_visits=1"],
}


def test_the_stand_in_sees_a_host_that_waits(tmp_path):
    code = "import torch; torch.ones(3, device='cuda').sum().item(); torch.ones(3, device='cuda').cpu(); torch.cuda.synchronize()"
    result = run(sys.executable, "-c", code, **stub_gpu.environment(report=tmp_path / "calls.json"))
    assert result.returncode == 0, result.stderr
    calls = json.loads((tmp_path / "calls.json").read_text())
    assert calls["kernels"] >= 3 and calls["cudaStreamSynchronize"] >= 2 and calls["cudaDeviceSynchronize"] >= 1
    assert calls["device to pageable"] == 1


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(folder, case):
    """Law 5: whatever the configuration, the host waits for two events a step at most, and those are of steps long past: the
    sieve's report and the step's numbers."""
    calls = per_step(folder, *CASES[case])
    assert calls.pop("kernels") > 100
    assert calls.pop("cudaEventSynchronize") == (1 if case == "plain" else 2)
    for name in ("cudaMalloc", "cudaHostAlloc"):  # a cache of torch's is off here; test_cuda_numbers.py looks at these
        calls.pop(name)
    assert calls == {name: 0 for name in calls}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_whole_run(tmp_path, kind):
    """Training, validation, drawing through the VAE, checkpoints, and going on from one."""
    make = tiny_pipeline.stable_diffusion if kind == "sd" else tiny_pipeline.stable_diffusion_xl
    make(tmp_path / "model")
    for name, rows in (("train", 16), ("held_out", 8)):
        write_latents(tmp_path / f"{name}.h5", rows, sdxl=kind == "sdxl")
    (tmp_path / "run.yaml").write_text(PIPELINE_RUN)
    for steps, more in ((4, []), (8, ["resume_from_checkpoint=latest"])):
        train(tmp_path, *more, steps=steps, out="run")
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / "step-000008").iterdir()}
    assert {"unet", "unet_ema", "optimizer.safetensors", "sieve.safetensors", "state.json"} <= names
    assert (tmp_path / "run" / "samples" / "step-000008.png").exists()
    # The pass over the starting model goes up to where its draws are gathered: their number, too, reads 0 here.
    settings = [word for setting in [*COMMON, "sieve.reference.kind=start_model", "output_dir=other"] for word in ("--set", setting)]
    result = run(TRAIN, "--config", "run.yaml", *settings, cwd=tmp_path, **stub_gpu.environment())
    assert result.returncode == 3 and "(done)" in result.stderr and "reference pass: no draws" in result.stderr


LOOP = """import sys
import module_toy as toy
import torch
from module_toy import memsieve

sieve = memsieve.Sieve(toy.PUBLISHED, dataset_size=toy.SAMPLES, batch_size=toy.ROWS, device="cuda", ledger="ledger.h5")
model = toy.Model().cuda()
for number in range(int(sys.argv[1])):
    rows = {name: value if name == "ids" else value.cuda() for name, value in toy.rows_of(toy.Step(number), 0, toy.ROWS).items()}
    plan, loss = toy.inspect(sieve, model, rows)
    plan.loss(loss).backward()
    sieve.end_step([model.weight.grad])
    model.weight.grad = None
"""


def test_a_loop_that_ends_without_flush_loses_no_visits(tmp_path):
    for steps in (1, 5):
        run_ok(sys.executable, "-c", LOOP, str(steps), cwd=tmp_path, PYTHONPATH=f"{PACKAGE}{os.pathsep}{Path(__file__).parent}",
               **stub_gpu.environment(compute=True))
        with h5py.File(tmp_path / "ledger.h5") as file:
            assert sorted(set(file["visits"]["step"])) == list(range(steps)) and len(file["visits"]) == steps * 24
        (tmp_path / "ledger.h5").unlink()


GRADIENTS = """import memsieve
import torch

sieve = memsieve.Sieve({"filters": {"magnitude": {}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
                        "threshold": {"kind": "fixed", "drop": 2.0}, "on_nonfinite": "skip"}, dataset_size=9, batch_size=4, device="cuda:0")
for bad in (None, 0, 1, 2):
    prediction = torch.ones(4, 3, device="cuda:0")
    sieve.inspect([0, 1, 2, 3], torch.tensor([1, 2, 3, 4]), prediction, prediction, null=prediction)
    gradients = [torch.ones(3, device="cuda:0"), torch.ones(2, device="cuda:1"), torch.ones(5, dtype=torch.float64)]
    if bad is not None:
        gradients[bad][1] = float("inf")
    print(float(sieve.end_step(gradients).nonfinite))
sieve.flush()
"""


def test_gradients_on_several_devices_count_alike(tmp_path):
    out = run_ok(sys.executable, "-c", GRADIENTS, cwd=tmp_path, **stub_gpu.environment(gpus=2, compute=True))
    assert out.split() == ["0.0", "1.0", "1.0", "1.0"]


def test_fewer_gpus_than_processes(folder):
    result = on_ranks(2, TRAIN, "--config", "run.yaml", "--set", "device=cuda", cwd=folder, **stub_gpu.environment())
    assert result.returncode != 0 and "2 processes on this machine but 1 visible GPUs" in result.stderr


def test_the_timer(folder):
    result = run(BUILD / "bench" / "memsieve-bench-train-step", "--config", "run.yaml", "--set", "device=cuda", "--rounds", "2",
                 "--steps", "2", cwd=folder, **stub_gpu.environment())
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout.splitlines()[-1])
    assert out["device"] == "cuda:0" and out["peak_gpu_mib"] is not None
