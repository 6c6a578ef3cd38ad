#!/usr/bin/env python3
"""Makes what stands for CLIP's image tower on the demo: from a picture to the mean state of its caption's tokens, by kernel ridge
regression on pictures of the demo's data set. `memsieve-audit benchmark --clip FILE` compares it with /clip_text of the prompts
that make_audit_prompts.py makes."""

import argparse
import os
import sys

import demo_sources as sources
import h5py
import numpy as np
from demo_sources import SourceError

SIDE = 224  # of the preset `clip`, with its mean and deviation by colour
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WIDTH, RIDGE = 1e-3, 1.0  # of the kernel exp(-WIDTH distance^2); others do about as well on the held-out sets
LEVELS = 4  # of each colour in the histogram
BATCH = 64


def tower_class(torch):
    pool = torch.nn.functional.avg_pool2d

    class CaptionTower(torch.nn.Module):
        """pixels [B, 3, 224, 224], prepared as `clip` -> [B, D]."""

        def __init__(self):
            super().__init__()
            for name, values in (("colour_mean", MEAN), ("colour_std", STD)):
                self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
            self.register_buffer("codes", torch.arange(LEVELS**3).view(-1, 1, 1))

        def describe(self, pixels):
            """A coarse picture, where something stands on the white ground, and a histogram of colours."""
            small = pool(pixels * self.colour_std + self.colour_mean, SIDE // sources.SIZE)
            drawn = (small.mean(1, keepdim=True) < 0.97).float()
            level = (small * LEVELS).floor().clamp(0, LEVELS - 1)
            code = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
            histogram = (code[:, None] == self.codes).float().mean((2, 3)).sqrt()
            return torch.cat([pool(small, 4).flatten(1), pool(drawn, 2).flatten(1), 2 * histogram], 1)

        def kernel(self, described):
            x = (described - self.mean) / self.std
            squares = x.square().sum(1, keepdim=True) + self.known.square().sum(1) - 2 * x @ self.known.T
            return torch.exp(-WIDTH * squares.clamp_min(0))

        def fit(self, pixels, states):
            described = torch.cat([self.describe(batch) for batch in pixels()])
            self.register_buffer("mean", described.mean(0))
            self.register_buffer("std", described.std(0) + 1e-3)
            self.register_buffer("known", (described - self.mean) / self.std)
            gram = self.kernel(described).double() + RIDGE * torch.eye(len(described), dtype=torch.float64)
            self.register_buffer("weights", torch.linalg.solve(gram, states.double()).float())

        def forward(self, pixels):
            return self.kernel(self.describe(pixels)) @ self.weights

    return CaptionTower


class Pairs:
    """Pictures and the mean states of their captions, from a file of the demo's data set."""

    def __init__(self, torch, path):
        self.torch = torch
        with h5py.File(path) as file:
            if "images" not in file:
                raise SourceError(f"{path}: is no file of the demo's data set")
            self.images, self.states = file["images"][:], torch.from_numpy(sources.mean_states(file["text"][:]))

    def pixels(self):
        torch = self.torch
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        for first in range(0, len(self.images), BATCH):
            images = torch.from_numpy(self.images[first:first + BATCH]).float()
            large = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
            yield (large.round().clamp(0, 255) / 255 - mean) / std


def own_caption_wins(torch, tower, pairs):
    """How often a picture is closer to its own caption than to another's: 0.5 = it says nothing."""
    said = torch.cat([tower(batch) for batch in pairs.pixels()])
    likeness = torch.nn.functional.normalize(said) @ torch.nn.functional.normalize(pairs.states).T
    return float((likeness.diagonal()[:, None] > likeness).float().sum(1).mean() / (len(likeness) - 1))


def make(arguments):
    torch = sources.require_module("torch", "torch")
    pairs = Pairs(torch, arguments.data)
    tower = tower_class(torch)().eval()
    with torch.no_grad():
        tower.fit(pairs.pixels, pairs.states)
        traced = torch.jit.trace(tower, next(pairs.pixels())[:2])
        wins = own_caption_wins(torch, traced, Pairs(torch, arguments.held_out))
    temporary = f"{arguments.out}.new"
    traced.save(temporary)
    os.replace(temporary, arguments.out)
    print(f"{arguments.out}: a held-out picture is closer to its own caption than to another's {wins:.3f} of the time")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/demo/base.h5", help="pictures and captions to fit (default: %(default)s)")
    parser.add_argument("--held-out", default="data/demo/held_out.h5", help="others, to tell how good it is (default: %(default)s)")
    parser.add_argument("--out", required=True, help="the TorchScript file to write")
    try:
        make(parser.parse_args(argv))
    except (SourceError, OSError) as error:
        print(f"make_caption_tower: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
