#!/usr/bin/env python3
"""Copies a diffusers UNet folder with its weights in float16: half the size, for shipping a base model.

    examples/demo/to_half.py runs/demo_base/checkpoints/step-003000/unet models/demo_base
"""
import argparse
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with config.json and " + WEIGHTS)
    parser.add_argument("target", type=Path, help="folder to make; must not hold a model yet")
    args = parser.parse_args()
    for name in ("config.json", WEIGHTS):
        if not (args.source / name).is_file():
            sys.exit(f"to_half.py: {args.source / name} is missing; name the unet folder of a checkpoint")
    if (args.target / WEIGHTS).exists():
        sys.exit(f"to_half.py: {args.target} holds a model already; move it away first")
    args.target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in load_file(args.source / WEIGHTS).items()}
    save_file(tensors, args.target / WEIGHTS, metadata={"format": "pt"})
    shutil.copy(args.source / "config.json", args.target / "config.json")


if __name__ == "__main__":
    main()
