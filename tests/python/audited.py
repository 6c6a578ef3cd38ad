"""What the tests of memsieve-audit share: a tiny pipeline with prompts, the program, and drawing again in Python."""
import json

import h5py
import keyed_noise
import numpy as np
import pytest
import tiny_pipeline
import torch
from conftest import BUILD, run, run_ok
from diffusers import DDIMScheduler, UNet2DConditionModel
from memsieve import hdf5_rows
from memsieve.commands import prepare_prompts

PROGRAM = BUILD / "audit" / "memsieve-audit"
PROMPTS = ["a cat", "dog on the moon", "the cat and a dog"]
NEGATIVES = ["x", "some words", "b c d", "moon"]
SIDE, PICTURES, STEPS, SEED, GUIDANCE = 16, 2, 8, 5, 3.0

torch.set_num_threads(1)


def prepare(pipeline, lines, out, *more):
    source = out.with_suffix(".txt")
    source.write_text("\n".join(lines) + "\n")
    words = ["--prompts", source, "--pipeline", pipeline, "--resolution", SIDE, "--device", "cpu", "--out", out, *more]
    assert prepare_prompts.main([str(word) for word in words]) == 0
    return out


class World:
    def __init__(self, folder, prediction_type="epsilon"):
        self.folder = folder
        self.pipeline = folder / "pipeline"
        tiny_pipeline.stable_diffusion(self.pipeline, prediction_type)
        # Random weights answer almost the same with any caption and at any timestep; larger ones tell them apart, as trained
        # ones do.
        unet = UNet2DConditionModel.from_pretrained(self.pipeline / "unet")
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if "attn2.to_v" in name or "attn2.to_out" in name:
                    weight.mul_(4)
                if "time_emb_proj.weight" in name:
                    weight.mul_(40)
        unet.save_pretrained(self.pipeline / "unet")
        rephrased = folder / "rephrased.jsonl"
        rephrased.write_text("".join(json.dumps({"prompt": prompt, "rephrased": [f"{word} {prompt}" for word in ("x", "dog cat", "moon")]})
                                     + "\n" for prompt in PROMPTS))
        self.prompts = prepare(self.pipeline, PROMPTS, folder / "prompts.h5", "--leave-out", "--random-tokens", 2,
                               "--random-variants", 2, "--rephrased", rephrased)
        self.negatives = prepare(self.pipeline, NEGATIVES, folder / "negatives.h5")

    def command(self, name, out, *more):
        return [PROGRAM, name, "--model", self.pipeline, "--prompts", self.prompts, "--out", out, "--device", "cpu", "--seed",
                SEED, "--num-images-per-prompt", PICTURES, "--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE, *more]

    def audit(self, name, out, *more):
        run_ok(*self.command(name, out, *more))
        return Found(out)

    def refuse(self, name, out, *more):
        return run(*self.command(name, out, *more))


def damage(out, field, value):
    """Puts `value`, JSON, in the place of a number of one row of the measurements; returns the row's unit and the others' lines."""
    path = out / "measurements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[2]) | {field: json.loads(value)}
    path.write_text("".join([*lines[:2], json.dumps(row) + "\n", *lines[3:]]))
    return row["unit"], [*lines[:2], *lines[3:]]


class Found:
    """What an audit left."""

    def __init__(self, out):
        self.out = out
        self.text = (out / "measurements.jsonl").read_text()
        self.summary = json.loads((out / "summary.json").read_text())
        self.rows = {row["unit"]: row for row in map(json.loads, self.text.rstrip("\n").split("\n")[1:])}


class Drawer:
    """The same pipeline, drawn by diffusers' UNet and scheduler in Python."""

    def __init__(self, world, dtype=torch.float32):
        self.unet = UNet2DConditionModel.from_pretrained(world.pipeline / "unet").to(dtype).eval().requires_grad_(False)
        self.scheduler = DDIMScheduler.from_pretrained(world.pipeline / "scheduler")
        self.scheduler.set_timesteps(STEPS)
        self.dtype = dtype
        with h5py.File(world.prompts) as file:
            self.text = torch.tensor(file["text"][:].astype(np.float32)).to(dtype)
            self.null = torch.tensor(file["null_text"][:].astype(np.float32)).to(dtype)
            self.captions = hdf5_rows.read_texts(file, "caption")
            self.variant_of, self.variant = file["variant_of"][:], hdf5_rows.read_texts(file, "variant")
            self.end_token = file["end_token"][:]
            self.tokens = np.array(hdf5_rows.read_texts(file, "token")).reshape(self.text.shape[:2])
            self.shape = file["latents"].shape[1:]

    def noise(self, prompt, picture, stream=keyed_noise.DRAW_NOISE):
        return torch.tensor(keyed_noise.normal(SEED, stream, [(prompt, picture)], self.shape)).to(self.dtype)

    def predict(self, x, t, text):
        """(without, with the caption) of one picture."""
        with_null = torch.cat([self.null[None], text[None]])
        answer = self.unet(torch.cat([x, x]), t, encoder_hidden_states=with_null).sample
        return answer[:1], answer[1:]

    def draw(self, prompt, picture, text, guide):
        """guide(number, null, captioned) -> guided prediction; returns the latent drawn."""
        x = self.noise(prompt, picture)
        for number, t in enumerate(self.scheduler.timesteps):
            with torch.no_grad():
                null, captioned = self.predict(x, t, text)
                x = self.scheduler.step(guide(number, null, captioned), t, x, eta=0).prev_sample
        return x

    def magnitudes(self, prompt, picture, text=None, guidance=GUIDANCE):
        """The magnitude of each step."""
        found = []

        def guide(number, null, captioned):
            found.append((captioned - null).norm().item())
            return null + guidance * (captioned - null)

        self.draw(prompt, picture, self.text[prompt] if text is None else text, guide)
        return found


# A fixture is made again for each file that imports it; these are only read.
_worlds = {}


def _world(prediction_type, tmp_path_factory):
    if prediction_type not in _worlds:
        _worlds[prediction_type] = World(tmp_path_factory.mktemp(prediction_type), prediction_type)
    return _worlds[prediction_type]


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def world(request, tmp_path_factory):
    return _world(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def epsilon_world(tmp_path_factory):
    return _world("epsilon", tmp_path_factory)
