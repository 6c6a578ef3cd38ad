"""A step that forgets, against torch: same rows, timesteps and noise, worked out here from the seed alone."""
import json

import h5py
import keyed_noise
import numpy as np
import pytest
import tiny
import torch
from conftest import BUILD, assert_refused, on_ranks, run
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

TRAIN = BUILD / "trainer" / "memsieve-train"
SEED, ROWS = 3, 4


def sample_ids(size, seed, first, count):
    return [keyed_noise.permutation(size, seed, at // size)[at % size] for at in range(first, first + count)]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    UNet2DConditionModel(**{k: v for k, v in tiny.UNET.items() if k != "_class_name"}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, start):
    tiny.write_run(tmp_path, latents=True)
    tiny.write_data(tmp_path / "forget.h5", 3, 9, latents=True)
    text = (tmp_path / "run.yaml").read_text().replace("config: unet.json", f"pretrained: {start}")
    text = text[:text.index("sieve:")]
    (tmp_path / "run.yaml").write_text(text + "proportion_empty_prompts: 0\nforget: {data: forget.h5, share: 0.3}\n")
    return tmp_path


def train(folder, *settings):
    return run(TRAIN, "--config", "run.yaml", *[w for s in settings for w in ("--set", s)], cwd=folder, timeout=120)


def gradient(unet, folder, name, ids, step, gamma=0):
    """Loss and gradient of these rows at places 0, 1 ... of a step, in float64."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    with h5py.File(folder / name) as file:
        latents, text = (torch.tensor(file[key][:][ids]).double() for key in ("latents", "text"))
    keys = [(step, place) for place in range(len(ids))]
    t = torch.tensor([keyed_noise.below(keyed_noise.keyed_bits(SEED, keyed_noise.TRAIN_TIMESTEP, *key), 1000) for key in keys])
    noise = torch.tensor(keyed_noise.normal(SEED, keyed_noise.TRAIN_NOISE, keys, latents.shape[1:])).double()
    unet.zero_grad()
    answer = unet(scheduler.add_noise(latents, noise, t), t, text).sample
    rows = (answer - scheduler.get_velocity(latents, noise, t)).square().flatten(1).mean(1)
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    (rows * snr.clamp(max=gamma) / (snr + 1) if gamma else rows).mean().backward()
    return rows.mean().item(), {n: p.grad.clone() for n, p in unet.named_parameters()}


def norm(gradients):
    return torch.sqrt(sum(g.square().sum() for g in gradients.values()))


@pytest.mark.parametrize("settings, gamma", [([], 0), (["snr_gamma=5"], 5), (["train_batch_size=2", "gradient_accumulation_steps=2"], 0)])
def test_the_gradient_of_one_step_is_torchs(folder, start, settings, gamma):
    # With beta1 0 the first step's mean gradient, which the checkpoint holds, is the gradient.
    done = train(folder, "max_train_steps=1", "max_grad_norm=0", "adam_beta1=0", *settings)
    assert done.returncode == 0, done.stderr
    unet = UNet2DConditionModel.from_pretrained(start).double()
    keep_loss, keep = gradient(unet, folder, "train.h5", sample_ids(16, SEED, 0, ROWS), 0, gamma)
    forget_seed = keyed_noise.keyed_bits(SEED, keyed_noise.FORGET_SHUFFLE, 0, 0)
    forget_loss, forget = gradient(unet, folder, "forget.h5", sample_ids(3, forget_seed, 0, ROWS), 0, gamma)
    k = 0.3 * norm(keep) / norm(forget)
    expected = {name: keep[name] - k * forget[name] for name in keep}
    ours = load_file(folder / "run" / "checkpoints" / "step-000001" / "optimizer.safetensors")
    scale = max(g.abs().max().item() for g in expected.values())
    for name, g in expected.items():
        assert torch.allclose(ours["exp_avg." + name].double(), g, rtol=1e-5, atol=1e-5 * scale), name
    (line,) = [json.loads(text) for text in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx(keep_loss, rel=1e-5)
    assert line["forget_loss"] == pytest.approx(forget_loss, rel=1e-5)
    assert line["forget_weight"] == pytest.approx(k.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm(expected).item(), rel=1e-5)


@pytest.mark.parametrize("change, words", [
    (lambda file: file["latents"].__setitem__((1, 0, 0, 0), np.nan), ["forget.h5", "row 1"]),
    (lambda file: (file.__delitem__("text"), file.__setitem__("text", np.zeros((3, 5, 7), np.float32))), ["forget.h5"]),
    (lambda file: (file.__delitem__("latents"), file.__setitem__("latents", np.zeros((3, 12, 8, 8), np.float32))), ["forget.h5"]),
])
def test_pictures_to_forget_that_do_not_fit_are_refused(folder, change, words):
    with h5py.File(folder / "forget.h5", "r+") as file:
        change(file)
    assert_refused(train(folder), 3, *words)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_picture_that_turns_out_bad_while_training_ends_all_ranks(folder, ranks):
    """It is read when its turn comes; every row of the batch is kept up until all ranks stop together."""
    with h5py.File(folder / "forget.h5", "r+") as file:
        file["latents"][1, 0, 0, 0] = np.inf
    words = ["--config", "run.yaml", "--set", "data.cache_mb=0", "--set", "train_batch_size=2"]
    done = run(TRAIN, *words, cwd=folder, timeout=120) if ranks == 1 else on_ranks(2, TRAIN, *words, cwd=folder, timeout=120)
    assert done.returncode == 3 or ranks == 2 and done.returncode == 4  # the other rank's, whose peer has failed
    assert "forget.h5: /latents: row 1 holds a NaN or Inf" in done.stderr


def test_a_resumed_run_must_forget_the_same(folder):
    assert train(folder, "max_train_steps=2").returncode == 0
    tiny.write_data(folder / "forget.h5", 4, 9, latents=True)
    assert_refused(train(folder, "resume_from_checkpoint=latest"), 2, "not the data", "forget: 3 rows", "forget: 4 rows")
