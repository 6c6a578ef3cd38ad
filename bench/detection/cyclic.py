"""Cyclic denoising: drawings that are noised halfway and denoised again, several times, under the finished model.

A single drawing under-reports memorisation: near a memorised picture the rounds end in it.
"""

import json

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from .checkpoints import latest_checkpoint

LEVEL = 500   # timestep that the drawings are noised to, or the nearest one of drawing
BATCH = 32


def load_model(checkpoint, base):
    if (checkpoint / "unet").is_dir():
        return UNet2DConditionModel.from_pretrained(checkpoint / "unet").float().eval()
    model = UNet2DConditionModel.from_pretrained(base).float()
    model.load_lora_adapter(checkpoint / "lora", prefix="unet", use_safetensors=True)
    return model.eval()


def steps_down(scheduler_folder, steps):
    """The steps of drawing from about LEVEL down: (timestep, noise(x0, e), denoise(prediction, x)), the highest first."""
    config = json.loads((scheduler_folder / "scheduler_config.json").read_text())
    if config["_class_name"] == "FlowMatchEulerDiscreteScheduler":
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        scheduler.set_timesteps(steps)
        levels = [float(s) for s in scheduler.sigmas]
        count = config["num_train_timesteps"]
        return from_level([(s * count, lambda x0, e, s=s: (1 - s) * x0 + s * e, lambda v, x, d=following - s: x + d * v)
                           for s, following in zip(levels, levels[1:])])
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return from_level([(int(t), lambda x0, e, t=t: scheduler.add_noise(x0, e, t.expand(len(x0))),
                        lambda prediction, x, t=t: scheduler.step(prediction, t, x).prev_sample) for t in scheduler.timesteps])


def from_level(steps):
    first = min(range(len(steps)), key=lambda place: abs(steps[place][0] - LEVEL))
    return steps[first:]


class Codec:
    """Pixels uint8 [N, 3, H, W] <-> what the model sees, by a data set's attributes."""

    def __init__(self, attributes):
        self.mean, self.std = (torch.tensor(np.asarray(attributes[name]), dtype=torch.float32).view(1, 3, 1, 1)
                               for name in ("mean", "std"))
        self.fold = int(attributes.get("pixel_unshuffle", 1))

    def encode(self, pixels):
        x = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - self.mean) / self.std
        return torch.nn.functional.pixel_unshuffle(x, self.fold)

    def decode(self, x):
        pixels = torch.nn.functional.pixel_shuffle(x, self.fold) * self.std + self.mean
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def denoise(model, steps, x, text, null_text, guidance, rounds, generator):
    """x [N, C, H, W] and text [N, L, D] -> the same after `rounds` rounds."""
    both = torch.cat([null_text.expand_as(text), text]) if guidance > 1 else text
    for _ in range(rounds):
        x = steps[0][1](x, torch.randn(x.shape, generator=generator))
        for timestep, _, back in steps:
            prediction = model(torch.cat([x, x]) if guidance > 1 else x, timestep, both).sample
            if guidance > 1:
                without, given = prediction.chunk(2)
                prediction = without + guidance * (given - without)
            x = back(prediction, x)
    return x


def rounds_of(run, base, prompts, drawings, sampling, rounds, seed):
    """drawings uint8 [P, S, 3, H, W] of the first P prompts of the open file `prompts` -> the same after cyclic denoising."""
    checkpoint = latest_checkpoint(run)
    model, codec = load_model(checkpoint, base), Codec(prompts["images"].attrs)
    steps = steps_down(checkpoint / "scheduler", sampling["num_inference_steps"])
    text = torch.from_numpy(prompts["text"][:len(drawings)].astype(np.float32)).repeat_interleave(drawings.shape[1], 0)
    null_text = torch.from_numpy(prompts["null_text"][:].astype(np.float32))
    x = codec.encode(drawings.reshape(-1, *drawings.shape[2:]))
    generator = torch.Generator().manual_seed(seed)
    done = [denoise(model, steps, part, words, null_text, sampling["guidance_scale"], rounds, generator)
            for part, words in zip(x.split(BATCH), text.split(BATCH))]
    return codec.decode(torch.cat(done)).reshape(drawings.shape)
