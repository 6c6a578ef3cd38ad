"""A model that predicts the velocity (flow), from training to its audit: the command lines of memsieve-train and memsieve-audit."""
import shutil

import numpy as np
import pytest
import tiny
import torch
from conftest import BUILD, run_ok
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

import h5py
import keyed_noise
from audited import Found

PROGRAM, TRAIN = BUILD / "audit" / "memsieve-audit", BUILD / "trainer" / "memsieve-train"
STEPS, GUIDANCE, SEED, DRAWS, UPDATES, BATCH = 6, 3.0, 5, 3, 4, 2
ROWS = 3


class Flow:
    """The checkpoint of a short run, opened by diffusers, and the pictures that it was trained on."""

    def __init__(self, folder):
        tiny.write_run(folder, latents=True)
        tiny.write_data(folder / "few.h5", ROWS, 1, latents=True)
        run_ok(TRAIN, "--config", "run.yaml", "--set", "prediction_type=flow", "--set", "max_train_steps=20", "--set",
               "learning_rate=0.01", cwd=folder)
        self.folder, self.checkpoint = folder, folder / "run" / "checkpoints" / "step-000020"
        self.unet = UNet2DConditionModel.from_pretrained(self.checkpoint / "unet").eval().requires_grad_(False)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self.checkpoint / "scheduler")
        with h5py.File(folder / "few.h5") as file:
            self.x0, self.text, self.null = (torch.tensor(file[name][:]) for name in ("latents", "text", "null_text"))

    def audit(self, name, out, *more):
        run_ok(PROGRAM, name, "--model", self.checkpoint, "--prompts", self.folder / "few.h5", "--out", out, "--device", "cpu", "--seed",
               SEED, "--num-images-per-prompt", 1, "--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE, *more)
        return Found(out)

    def draw(self, row, text, seen=None):
        self.scheduler.set_timesteps(STEPS)
        x = torch.tensor(keyed_noise.normal(SEED, keyed_noise.DRAW_NOISE, [(row, 0)], self.x0.shape[1:]))
        for t in self.scheduler.timesteps:
            null, captioned = self.unet(torch.cat([x, x]), t, torch.stack([self.null, text])).sample.chunk(2)
            if seen is not None:
                seen.append((captioned - null).norm().item())
            x = self.scheduler.step(null + GUIDANCE * (captioned - null), t, x).prev_sample
        return x

    def error(self, row, text, noise, t):
        """Of the velocity noise - x0, at noise levels (t + 1) / 1000; timesteps are counted from 1."""
        s = ((t + 1) / 1000).view(-1, 1, 1, 1)
        x0 = self.x0[row][None].expand_as(noise)
        answer = self.unet((1 - s) * x0 + s * noise, t + 1, text[None].expand(len(noise), -1, -1)).sample
        return (answer - (noise - x0)).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return Flow(tmp_path_factory.mktemp("flow"))


def test_magnitudes_and_the_caption_s_gain(flow, tmp_path):
    found = flow.audit("detect", tmp_path / "out", "--caption-gain-draws", DRAWS)
    assert found.summary["prediction_type"] == "flow"
    t = torch.tensor([(2 * i + 1) * 1000 // (2 * DRAWS) for i in range(DRAWS)])
    for row in range(ROWS):
        seen = []
        flow.draw(row, flow.text[row], seen)
        assert found.rows[f"prompts/{row}/0"]["magnitude"] == pytest.approx(seen, rel=1e-4)
        assert found.rows[f"prompts/{row}/0"]["norm"] == pytest.approx(seen[0], rel=1e-4)
        noise = torch.tensor(keyed_noise.normal(SEED, keyed_noise.CAPTION_GAIN_NOISE, [(row, i) for i in range(DRAWS)], flow.x0.shape[1:]))
        gain = (flow.error(row, flow.null, noise, t).log() - flow.error(row, flow.text[row], noise, t).log()).mean().item()
        assert found.rows[f"prompts/{row}/gain"]["caption_gain"] == pytest.approx(gain, abs=1e-4)


def test_errors_optimised_states_and_drawings(flow, tmp_path):
    found = flow.audit("check-picture", tmp_path / "out", "--error-draws", DRAWS, "--optimisation-steps", UPDATES,
                       "--optimisation-batch", BATCH)
    t = torch.tensor([(2 * i + 1) * 1000 // (2 * DRAWS) for i in range(DRAWS)])
    noise = torch.tensor(keyed_noise.normal(SEED, 50, [(0, i) for i in range(DRAWS)], flow.x0.shape[1:]))
    for row in range(ROWS):
        assert found.rows[f"prompts/{row}/errors"]["errors"] == pytest.approx(flow.error(row, flow.text[row], noise, t).numpy(), rel=1e-4)
        drawn = flow.draw(row, flow.text[row])
        expected = np.corrcoef(drawn.numpy().ravel(), flow.x0[row].numpy().ravel())[0, 1]
        told = found.rows[f"prompts/{row}/drawings"]
        assert told["caption"]["similarity"][0] == pytest.approx(expected, abs=1e-4)
        states = flow.text[row].clone().requires_grad_(True)
        adam, losses = torch.optim.Adam([states], lr=0.1), []
        for step in range(UPDATES):
            rows = [(row, step * BATCH + i) for i in range(BATCH)]
            fresh = torch.tensor(keyed_noise.normal(SEED, 51, rows, flow.x0.shape[1:]))
            when = torch.tensor([(keyed_noise.keyed_bits(SEED, 52, *key) >> 32) * 1000 >> 32 for key in rows])
            loss = flow.error(row, states, fresh, when).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert told["losses"] == pytest.approx(losses, rel=1e-4)


def test_inverted_noise(flow, tmp_path):
    """The first error is that of the picture a velocity stands for, x0 = x - s v, under standard normal noise."""
    found = flow.audit("check-picture", tmp_path / "out", "--rows", 1, "--optimisation-steps", 0, "--inversion-steps", 1,
                       "--inversion-batch", BATCH, "--error-draws", 1)
    rows = [(1, i) for i in range(BATCH)]
    noise = torch.tensor(keyed_noise.normal(SEED, 53, rows, flow.x0.shape[1:]))
    t = torch.tensor([(keyed_noise.keyed_bits(SEED, 54, *key) >> 32) * 1000 >> 32 for key in rows])
    s = (t + 1) / 1000
    expected = (s**2 * flow.error(1, flow.text[1], noise, t)).mean().item()
    told = found.rows["prompts/1/inversion"]["inversion"]
    assert told["errors"] == pytest.approx([expected], rel=1e-4)
    assert told["divergences"] == [0] and told["divergence"] is None and told["drawings"] == 8 * 7, "it looks after the last update"


def test_another_prediction_is_another_model(flow, tmp_path):
    """The same weights under a scheduler of epsilon are asked at other timesteps and drawn in another way."""
    other = tmp_path / "other"
    shutil.copytree(flow.checkpoint / "unet", other / "unet")
    (other / "scheduler").mkdir()
    (other / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}')
    run_ok(PROGRAM, "detect", "--model", other, "--prompts", flow.folder / "few.h5", "--out", tmp_path / "out", "--device", "cpu",
           "--seed", SEED, "--num-images-per-prompt", 1, "--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE)
    as_flow = flow.audit("detect", tmp_path / "flow")
    assert Found(tmp_path / "out").rows["prompts/0/0"]["magnitude"] != pytest.approx(as_flow.rows["prompts/0/0"]["magnitude"], rel=1e-2)
