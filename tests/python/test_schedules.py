"""Schedules, targets, weights, drawing and learning rates against diffusers' own, by way of tests/programs/schedule_main.cpp."""
import json

import numpy as np
import pytest
import torch
from conftest import BUILD, run
from diffusers import (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler,
                       UniPCMultistepScheduler)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file

PROGRAM = BUILD / "tests" / "memsieve-schedule"
BETAS = {
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "linear": dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    "squaredcos_cap_v2": dict(beta_schedule="squaredcos_cap_v2", beta_start=0.0001, beta_end=0.02),
}


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    return {"x0": torch.randn(6, 3, 4, 5), "noise": torch.randn(6, 3, 4, 5), "t": torch.tensor([0, 1, 250, 500, 998, 999]),
            "text": torch.randn(6, 2, 3), "null_text": torch.randn(2, 3)}


def ours(folder, inputs, refused=False, **request):
    save_file(inputs, folder / "in.safetensors")
    (folder / "request.json").write_text(json.dumps({"inputs": str(folder / "in.safetensors"), **request}))
    done = run(PROGRAM, folder / "request.json", folder / "out.safetensors")
    if refused:
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def close(a, b, rtol=2e-5, atol=2e-6):
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol)


def schedule(betas="scaled_linear", prediction="epsilon", zero=False, count=1000):
    return dict(num_train_timesteps=count, prediction_type=prediction, rescale_betas_zero_snr=zero, **BETAS[betas])


CASES = [(b, p, z) for b in BETAS for p in ("epsilon", "v_prediction", "sample") for z in (False, True)
         if not (z and p == "epsilon")]


@pytest.mark.parametrize("betas, prediction, zero", CASES)
def test_noise_targets_and_weights(tmp_path, inputs, betas, prediction, zero):
    config = schedule(betas, prediction, zero)
    got = ours(tmp_path, inputs, schedule=config, gamma=5.0)
    theirs = DDPMScheduler(**config)
    # Theirs multiplies float32 betas up, ours float64 ones.
    close(got["alphas_cumprod"], theirs.alphas_cumprod, rtol=2e-4, atol=2e-7)
    if zero:
        assert got["alphas_cumprod"][-1] == 0 and theirs.alphas_cumprod[-1] == 0
    x0, noise, t = inputs["x0"], inputs["noise"], inputs["t"]
    close(got["noisy"], theirs.add_noise(x0, noise, t), rtol=1e-4, atol=1e-4)
    target = {"epsilon": noise, "sample": x0, "v_prediction": theirs.get_velocity(x0, noise, t)}[prediction]
    close(got["target"], target, rtol=1e-4, atol=1e-4)

    snr = compute_snr(theirs, torch.arange(1000))
    close(got["snr"], snr, rtol=5e-3, atol=1e-6)  # at t = 0, 1 - a costs float32 four digits
    # As in diffusers' training scripts; the sample's own loss already carries the weight of x0 (Hang et al., section 3.4).
    weight = torch.minimum(snr, torch.tensor(5.0))
    weight = {"epsilon": weight / snr, "v_prediction": weight / (snr + 1), "sample": weight}[prediction]
    close(got["weight"], weight, rtol=5e-3, atol=1e-6)


def test_zero_snr_is_refused_with_epsilon(tmp_path, inputs):
    said = ours(tmp_path, inputs, refused=True, schedule=schedule(zero=True))
    assert "rescale_betas_zero_snr" in said and "v_prediction" in said and "pure noise" in said


def model(x, t, text, count=1000):
    return 0.3 * x + 0.1 * text.mean((1, 2)).view(-1, 1, 1, 1) + 0.2 * float(t) / count


def their_drawing(scheduler, inputs, steps, guidance):
    scheduler.set_timesteps(steps)
    x, null = inputs["noise"], inputs["null_text"].expand_as(inputs["text"])
    for t in scheduler.timesteps:
        answer = model(x, t, inputs["text"])
        if guidance > 1:
            without = model(x, t, null)
            answer = without + guidance * (answer - without)
        x = scheduler.step(answer, t, x).prev_sample
    return x


DRAW = [("leading", 1, False), ("leading", 0, True), ("trailing", 0, False), ("trailing", 0, True), ("linspace", 0, False)]


@pytest.mark.parametrize("prediction, zero", [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", True)])
@pytest.mark.parametrize("spacing, offset, to_one", DRAW)
@pytest.mark.parametrize("steps, guidance, clip", [(25, 3.0, False), (7, 1.0, True)])
def test_ddim(tmp_path, inputs, prediction, zero, spacing, offset, to_one, steps, guidance, clip):
    config = schedule(prediction=prediction, zero=zero)
    options = dict(timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one, clip_sample=clip, clip_sample_range=1.5)
    got = ours(tmp_path, inputs, schedule=config, draw=dict(steps=steps, guidance=guidance, **options))
    theirs = DDIMScheduler(**config, **options)
    drawn = their_drawing(theirs, inputs, steps, guidance)
    assert got["timesteps"].tolist() == theirs.timesteps.tolist()
    close(got["drawn"], drawn, rtol=2e-3, atol=2e-3 * drawn.abs().max().item())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_for_every_number_of_steps(tmp_path, inputs, spacing):
    got = ours(tmp_path, inputs, timesteps_for=list(range(1, 1001)), timestep_spacing=spacing)
    theirs = DDIMScheduler(**schedule(), timestep_spacing=spacing)
    for steps in range(1, 1001):
        theirs.set_timesteps(steps)
        # For some numbers numpy's arange runs one step too far, to timestep -1.
        assert got[str(steps)].tolist() == theirs.timesteps[:steps].tolist(), steps


def test_flow(tmp_path, inputs):
    got = ours(tmp_path, inputs, schedule=schedule(prediction="flow"), draw=dict(steps=9, guidance=2.5))
    theirs = FlowMatchEulerDiscreteScheduler()
    x0, noise, t = inputs["x0"], inputs["noise"], inputs["t"]
    # Theirs runs from the noisiest timestep, 1000, down; ours counts up from 0.
    close(got["noisy"], theirs.scale_noise(x0, theirs.timesteps[999 - t], noise))
    close(got["target"], noise - x0)
    drawn = their_drawing(theirs, inputs, 9, 2.5)
    np.testing.assert_allclose(got["timesteps"].numpy(), theirs.timesteps.numpy(), rtol=1e-6)
    close(got["drawn"], drawn, rtol=1e-4, atol=1e-4)
    # Every kind's weighted error is min(snr, gamma) times x0's: x0 = x_t - s * velocity.
    s = (torch.arange(1000) + 1) / 1000
    snr = ((1 - s) / s) ** 2
    close(got["snr"], snr)
    close(got["weight"], torch.minimum(snr, torch.tensor(5.0)) * s**2)


SAVED = [
    PNDMScheduler(**BETAS["scaled_linear"], set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True),  # SD 1.x
    DDIMScheduler(**BETAS["scaled_linear"], set_alpha_to_one=False, steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
    EulerDiscreteScheduler(**BETAS["scaled_linear"], timestep_spacing="leading", steps_offset=1),  # SDXL
    DDPMScheduler(**BETAS["squaredcos_cap_v2"], num_train_timesteps=1000, prediction_type="sample", rescale_betas_zero_snr=True,
                  timestep_spacing="trailing", clip_sample=True, clip_sample_range=2.0),
    UniPCMultistepScheduler(**BETAS["linear"]),
]


@pytest.mark.parametrize("saved", SAVED, ids=lambda s: type(s).__name__)
def test_scheduler_file(tmp_path, inputs, saved):
    saved.save_pretrained(tmp_path)
    theirs = DDIMScheduler.from_pretrained(tmp_path)
    if "clip_sample" not in saved.config:
        theirs.register_to_config(clip_sample=False)
    written = tmp_path / "ours" / "scheduler_config.json"
    written.parent.mkdir()
    got = ours(tmp_path, inputs, scheduler=str(tmp_path), draw=dict(steps=10, guidance=2.0), write=str(written))
    close(got["alphas_cumprod"], theirs.alphas_cumprod, rtol=2e-4, atol=2e-7)
    expected = their_drawing(theirs, inputs, 10, 2.0)
    assert got["timesteps"].tolist() == theirs.timesteps.tolist()
    close(got["drawn"], expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())
    # What we write is opened by diffusers and means the same.
    again = DDIMScheduler.from_pretrained(written.parent)
    for key in ("num_train_timesteps", "prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample",
                "clip_sample_range", "rescale_betas_zero_snr"):
        assert again.config[key] == theirs.config[key], key
    close(again.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6, atol=1e-9)


def test_flow_scheduler_file(tmp_path, inputs):
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    written = tmp_path / "ours" / "scheduler_config.json"
    written.parent.mkdir()
    got = ours(tmp_path, inputs, scheduler=str(tmp_path), write=str(written))
    close(got["target"], inputs["noise"] - inputs["x0"])
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(written.parent).config.num_train_timesteps == 1000


@pytest.mark.parametrize("change, words", [
    ({"trained_betas": [0.1]}, ["trained_betas", "[0.1]"]), ({"thresholding": True}, ["thresholding"]),
    ({"_class_name": "EDMEulerScheduler"}, ["_class_name", "EDMEulerScheduler"]), ({"beta_start": "x"}, ["beta_start", "type"]),
    ({"beta_schedule": "laplace"}, ["laplace"]), ({"prediction_type": "v"}, ["'v'"]), ({"num_train_timesteps": 10**12}, ["num_train_timesteps"]),
    ({"timestep_spacing": "odd"}, ["timestep_spacing"]), ({"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr"]),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, ["shift", "3.0"]),
])
def test_scheduler_file_that_is_refused(tmp_path, inputs, change, words):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"} | change))
    said = ours(tmp_path, inputs, refused=True, scheduler=str(tmp_path))
    assert all(word in said for word in [str(path), *words]), said


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_scheduler_file_that_is_torn(tmp_path, inputs, text):
    (tmp_path / "scheduler_config.json").write_text(text)
    assert "scheduler_config.json" in ours(tmp_path, inputs, refused=True, scheduler=str(tmp_path))


@pytest.mark.parametrize("name, cycles, power", [
    ("constant", 1, 1.0), ("constant_with_warmup", 1, 1.0), ("linear", 1, 1.0), ("cosine", 1, 1.0),
    ("cosine_with_restarts", 3, 1.0), ("polynomial", 1, 1.0), ("polynomial", 1, 2.5)])
@pytest.mark.parametrize("warmup", [0, 7])
def test_learning_rates(tmp_path, name, cycles, power, warmup):
    rate = 0.01
    got = ours(tmp_path, {"x": torch.zeros(1)}, lr=dict(name=name, warmup=warmup, steps=40, cycles=cycles, power=power,
                                                        learning_rate=rate))["factors"] * rate
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=40, num_cycles=cycles, power=power)
    expected = []
    for _ in range(41):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
