"""A run so small that it takes a second: a data set, a model and a configuration in one folder."""
import json

import h5py
import numpy as np

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 4, "in_channels": 12, "out_channels": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention_dim": 6, "attention_head_dim": 2,
    "norm_num_groups": 4,
}

YAML = """seed: 3
output_dir: run
device: cpu
data:
  train: train.h5
  held_out: held_out.h5
model:
  config: unet.json
prediction_type: v_prediction
max_train_steps: 4
train_batch_size: 4
learning_rate: 0.001
sieve:
  filters:
    magnitude: {scale: log}
    prediction_error: {scale: log}
  standardise: {min_count: 8}
  held_out: {rows: 2}
"""

# The published rule; a fixed level besides, which depends on what the test wants dropped.
PUBLISHED = ["sieve.standardise.by=none", "sieve.evidence.kind=visit", "sieve.threshold.kind=fixed", "sieve.probe.kind=every",
             "sieve.reference.kind=none", "sieve.held_out.rows=0"]


def write_data(path, rows, seed=0, latents=False):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        if latents:
            file["latents"] = rng.standard_normal((rows, 12, 4, 4)).astype(np.float32)
        else:
            images = file.create_dataset("images", data=rng.integers(0, 256, (rows, 3, 8, 8)).astype(np.uint8))
            images.attrs.update(mean=np.full(3, 0.5), std=np.full(3, 0.3), pixel_unshuffle=np.int64(2))
        file["text"] = rng.standard_normal((rows, 5, 6)).astype(np.float32)
        file["null_text"] = np.zeros((5, 6), np.float32)
        file.create_dataset("caption", data=[f"picture {i}" for i in range(rows)], dtype=h5py.string_dtype())
        file["group_id"] = np.arange(rows, dtype=np.int64)


def write_run(folder, latents=False, steps=4):
    """train.h5 (16 rows), held_out.h5 (8), unet.json and run.yaml in `folder`; returns the path of run.yaml."""
    write_data(folder / "train.h5", 16, 1, latents)
    write_data(folder / "held_out.h5", 8, 2, latents)
    (folder / "unet.json").write_text(json.dumps(UNET))
    (folder / "run.yaml").write_text(YAML.replace("max_train_steps: 4", f"max_train_steps: {steps}"))
    return folder / "run.yaml"


def replace(path, name, value):
    """Replaces a data set of an HDF5 file, its attributes kept; None = take it away."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        if value is not None:
            file[name] = value
            file[name].attrs.update(attributes)
