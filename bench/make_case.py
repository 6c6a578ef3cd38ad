#!/usr/bin/env python3
"""Makes a case to measure: a UNet's config.json, synthetic latents and captions, and three configurations (plain, published, ours).

  make_case.py --unet sd15_quarter --out data/bench/sd15_quarter-32 [--latents 32] [--batch 4]
"""
import argparse
import json
from pathlib import Path

import h5py
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
CROSS_DOWN, DOWN, UP, CROSS_UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SD15 = {
    "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
}
UNETS = {
    "sd15": SD15,
    # A quarter of the width; 80 channels are not divided by 32 groups.
    "sd15_quarter": SD15 | {"block_out_channels": [80, 160, 320, 320], "norm_num_groups": 16},
    "sdxl": SD15 | {
        "sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, CROSS_UP, UP],
    },
}
ROWS, HELD_OUT, TOKENS = 64, 16, 77


def write_conditions(file, rows, unet, side, rng):
    """What Stable Diffusion XL wants to know beside the caption's states."""
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    file["pooled"] = rng.standard_normal((rows, pooled)).astype(np.float32)
    file["null_pooled"] = np.zeros(pooled, np.float32)
    file["time_ids"] = np.tile(np.float32([8 * side, 8 * side, 0, 0, 8 * side, 8 * side]), (rows, 1))


def write_set(path, rows, unet, side, seed):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        file["latents"] = rng.standard_normal((rows, unet["in_channels"], side, side)).astype(np.float32)
        file["text"] = rng.standard_normal((rows, TOKENS, unet["cross_attention_dim"])).astype(np.float32)
        file["null_text"] = np.random.default_rng(0).standard_normal((TOKENS, unet["cross_attention_dim"])).astype(np.float32)
        file.create_dataset("caption", data=[f"row {i}" for i in range(rows)], dtype=h5py.string_dtype())
        if unet.get("addition_embed_type") == "text_time":
            write_conditions(file, rows, unet, side, rng)


def sieve(name, batch):
    """The mapping of configs/NAME.yaml, for so small a batch."""
    keys = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["sieve"]
    keys["block_rows"] = min(keys.get("block_rows", 8), batch)
    if "held_out" in keys:
        keys["held_out"]["rows"] = min(keys["held_out"]["rows"], max(1, batch // 4))
    return keys


def make(unet, out, side, batch):
    out.mkdir(parents=True, exist_ok=True)
    (out / "unet.json").write_text(json.dumps(unet | {"sample_size": side}, indent=2))
    write_set(out / "train.h5", ROWS, unet, side, 1)
    write_set(out / "held_out.h5", HELD_OUT, unet, side, 2)
    run = {"seed": 1, "output_dir": str(out / "run"), "data": {"train": str(out / "train.h5"), "held_out": str(out / "held_out.h5")},
           "model": {"config": str(out / "unet.json")}, "train_batch_size": batch, "learning_rate": 1e-5}
    for name, more in {"plain": {}, "published": {"sieve": sieve("wen2024", batch)}, "ours": {"sieve": sieve("default", batch)}}.items():
        (out / f"{name}.yaml").write_text(yaml.safe_dump(run | more, sort_keys=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", choices=UNETS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latents", type=int, default=32, help="height and width")
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    make(UNETS[args.unet], args.out, args.latents, args.batch)


if __name__ == "__main__":
    main()
