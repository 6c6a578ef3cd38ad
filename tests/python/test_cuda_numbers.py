"""Runs on GPUs against runs on the CPU, on a machine without GPUs: tests/stub_cuda has torch's CPU kernels compute what the
GPU's would, behind CUDA's and NCCL's interfaces. So devices, streams, late reports, the reducer and the collectives are those
of a run on GPUs; only the arithmetic is not."""
import json
import re
import subprocess
import time

import h5py
import numpy as np
import pytest
import stub_gpu
import tiny
import torch
from conftest import BUILD, clean_environment, on_ranks, run, run_ok
from safetensors.torch import load_file
from test_ledger import visits as read_ledger

TRAIN = BUILD / "trainer" / "memsieve-train"
STEPS = 24
OURS = ["sieve.reference.kind=start_model", "sieve.reference.draws=2", "sieve.threshold.drop=0.3", "sieve.threshold.release=0.4",
        "sieve.evidence.min_visits=1", "sieve.standardise.min_count=4", "sieve.block_rows=1", "sieve.held_out.rows=4"]
PASS_OVER = [*OURS, "sieve.action.pass_over=true", "sieve.revisit.rows=4", "sieve.revisit.every=2"]
PUBLISHED = [*tiny.PUBLISHED, "sieve.threshold.drop=-1.5"]
TRAINED = [f"max_train_steps={STEPS}", "learning_rate=0.003", "use_ema=true", "data.validation=held_out.h5", "validation.every=12",
           "data.prompts=held_out.h5", "sampling.every=12", "sampling.num_inference_steps=3"]

pytestmark = stub_gpu.needed


def words_of(device, out, settings):
    return [word for setting in [*TRAINED, f"device={device}", f"output_dir={out}", *settings] for word in ("--set", setting)]


def start(folder, device, *settings, ranks=1, out):
    words = words_of(device, out, settings)
    stub = stub_gpu.environment(gpus=ranks, compute=True) if device == "cuda" else {}
    if ranks == 1:
        return run(TRAIN, "--config", "run.yaml", *words, cwd=folder, **stub)
    return on_ranks(ranks, TRAIN, "--config", "run.yaml", *words, f"--set=train_batch_size={4 // ranks}", cwd=folder, **stub)


def trained(folder, device, *settings, out=None, **options):
    out = out or device
    result = start(folder, device, *settings, out=out, **options)
    assert result.returncode == 0, result.stderr + result.stdout
    return folder / out


def lines(run_folder):
    """metrics.jsonl without what depends on the clock."""
    all_lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("step_ms", "images_per_second")} for line in all_lines]


def ledger(run_folder):
    return read_ledger(run_folder / "ledger.h5")[1]


def weights(run_folder, step=STEPS):
    checkpoint = run_folder / "checkpoints" / f"step-{step:06}"
    (file,) = [file for kind in ("unet_ema", "lora_ema") for file in (checkpoint / kind).glob("*.safetensors")]
    return load_file(file)


def assert_same_run(one, other, tolerance=2e-3):
    """The same lines, decisions and weights, up to the order in which kernels sum."""
    a, b = lines(one), lines(other)
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for key, value in x.items():
            assert y[key] == (pytest.approx(value, rel=tolerance, abs=1e-6) if isinstance(value, float) else value), (key, x, y)
    p, q = ledger(one), ledger(other)
    for name in p.dtype.names:
        if p.dtype[name].kind == "f":
            np.testing.assert_allclose(q[name], p[name], rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(q[name], p[name], err_msg=name)
    assert np.array_equal(p["weight"] == 0, q["weight"] == 0)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-2, atol=2e-4)


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    """The folder of an uninterrupted run on one GPU with these settings; each is made once, for all tests that compare with it."""
    place, made = tmp_path_factory.mktemp("on_gpu"), {}
    tiny.write_run(place)

    def run_with(*settings):
        if settings not in made:
            made[settings] = trained(place, "cuda", *settings, out=f"run{len(made)}")
        return made[settings]

    return run_with


CASES = {"ours": OURS, "published": PUBLISHED, "lora": [*OURS, "lora.rank=2", "lora.init=gaussian", "learning_rate=0.02"],
         "accumulation": [*OURS, "gradient_accumulation_steps=2", "snr_gamma=5"],
         "checkpointing": [*OURS, "gradient_checkpointing=true"], "pass_over": PASS_OVER}


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_trains_as_the_cpu_does(folder, on_gpu, case):
    cpu, gpu = trained(folder, "cpu", *CASES[case]), on_gpu(*CASES[case])
    assert_same_run(cpu, gpu)
    visits = ledger(cpu)
    training = visits[visits["kind"] == 0]
    assert 0.1 < (training["weight"] == 0).mean() < 0.9  # or nothing would be compared
    assert ((visits["kind"] == 2).sum() > 4 and (visits["kind"] == 3).sum() > 4) == (case == "pass_over")
    with h5py.File(cpu / "samples" / f"step-{STEPS:06}.h5") as a, h5py.File(gpu / "samples" / f"step-{STEPS:06}.h5") as b:
        (name,) = a
        difference = np.abs(a[name][:].astype(int) - b[name][:].astype(int))
        assert difference.max() <= 8 and difference.mean() < 0.5


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_gpus_trains_the_same(folder, on_gpu, ranks):
    """NCCL's back end, DDP's reducer, one GPU a rank."""
    assert_same_run(on_gpu(*OURS), trained(folder, "cuda", *OURS, out="many", ranks=ranks))


def test_a_signal_leaves_a_checkpoint_to_go_on_from(folder, on_gpu):
    command = [TRAIN, "--config", "run.yaml", *words_of("cuda", "parts", OURS)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL,
                               env=clean_environment(**stub_gpu.environment(compute=True)))
    deadline = time.monotonic() + 60
    while not (folder / "parts" / "samples" / "step-000000.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.terminate()
    assert process.wait(60) == 143
    steps = [line for line in lines(folder / "parts") if line["kind"] == "step"]
    assert 0 < len(steps) < STEPS and (folder / "parts" / "checkpoints" / f"step-{len(steps):06}").exists()
    parts = trained(folder, "cuda", *OURS, "resume_from_checkpoint=latest", out="parts")
    assert lines(parts) == lines(on_gpu(*OURS))


@pytest.mark.parametrize("settings", [OURS, [*OURS, "mixed_precision=fp16"], [*OURS, "mixed_precision=bf16"], PASS_OVER])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, on_gpu, settings):
    whole = on_gpu(*settings)
    trained(folder, "cuda", *settings, "max_train_steps=12", out="parts")
    parts = trained(folder, "cuda", *settings, "resume_from_checkpoint=latest", out="parts")
    resumed = [line for line in lines(parts) if line["kind"] == "step"]
    assert resumed == [line for line in lines(whole) if line["kind"] == "step"] and len(resumed) == STEPS
    assert ledger(whole).tobytes() == ledger(parts).tobytes()
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(parts)[name], tensor), name


@pytest.mark.parametrize("settings", [OURS, [*OURS, "mixed_precision=fp16", "gradient_accumulation_steps=2"]])
def test_no_memory_is_asked_for_once_a_run_has_settled(folder, settings):
    """What a step needs comes from torch's caches, on the GPU and of pinned memory; asking CUDA would make the host wait."""
    def calls(steps):
        settled = [*settings, f"max_train_steps={steps}", "validation.every=0", "sampling.every=0", "checkpointing_steps=0"]
        result = run(TRAIN, "--config", "run.yaml", *words_of("cuda", f"run{steps}", settled), cwd=folder,
                     **stub_gpu.environment(compute=True, report=folder / "calls.json"))
        assert result.returncode == 0, result.stderr
        return json.loads((folder / "calls.json").read_text())

    short, long = calls(STEPS), calls(3 * STEPS)
    assert 0 < long["cudaMalloc"] == short["cudaMalloc"]
    # How many pinned blocks are in use at once depends a little on how far the reading thread is ahead.
    assert 0 < long["cudaHostAlloc"] <= short["cudaHostAlloc"] + STEPS // 4


def test_mixed_precision_learns_as_float32_does(on_gpu):
    full = lines(on_gpu(*OURS))
    for precision in ("fp16", "bf16"):
        half = lines(on_gpu(*OURS, f"mixed_precision={precision}"))
        losses = [[line["loss"] for line in run_lines if line["kind"] == "step"] for run_lines in (full, half)]
        assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


def test_a_bad_sample_ends_the_run_with_its_name_before_it_reaches_the_weights(folder):
    """A text of 1e38 overflows in the UNet. The error comes two steps late; no step in between has moved the weights."""
    with h5py.File(folder / "train.h5", "r+") as file:
        file["text"][5] = 1e38
    result = start(folder, "cuda", *OURS, "sieve.reference.kind=none", "proportion_empty_prompts=0", "checkpointing_steps=1",
                   "validation.every=0", "sampling.every=0", out="bad")
    assert result.returncode == 5, result.stderr
    assert re.search(r"error .*sample 5: NaN or Inf", result.stderr.strip().splitlines()[-1])
    for made in (folder / "bad" / "checkpoints").glob("step-*"):
        assert all(torch.isfinite(t).all() for t in weights(folder / "bad", int(made.name[5:])).values())


def test_a_full_gpu_is_one_line_with_a_remedy(folder):
    words = ["--config", "run.yaml", *words_of("cuda", "run", OURS)]
    result = run(TRAIN, *words, cwd=folder, **stub_gpu.environment(compute=True), MEMSIEVE_STUB_MIB="1")
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if " error " in line]
    assert len(errors) == 1 and "out of memory. Tried to allocate" in errors[0] and "lower train_batch_size" in errors[0]
    assert result.stderr.splitlines()[-1] == errors[0]


def test_the_unit_tests_for_gpus_pass():
    out = run_ok(BUILD / "tests" / "test_runtime", "[.cuda]", **stub_gpu.environment(compute=True))
    assert "All tests passed" in out and "3 test cases" in out
