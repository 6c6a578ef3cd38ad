"""The trainer, and its loop written in Python with diffusers' UNet and `import memsieve` (examples/python/fine_tune.py): the same samples
and noise, and the same decisions row by row, on one rank and on two."""
import copy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import BUILD, ROOT, run, torchrun
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from test_ledger import visits

RANK = Path(__file__).parent / "same_decisions_rank.py"
STEPS, ROWS, SAMPLES, COPIES = 72, 8, 40, 12
# What is decided and must be equal; what is measured and may differ as rounding does.
EQUAL = ("step", "epoch", "sample", "group", "kind", "timestep", "captioned", "flagged", "weight", "threshold", "alike")
MEASURED = {"raw_start_gap": 1e-4, "raw_magnitude": 1e-4, "z_start_gap": 5e-3, "z_magnitude": 1e-4, "score": 5e-3}

DEFAULT = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())["sieve"]
RULES = {
    # What docs/python.md recommends; held-out rows, probes and looks come oftener, for so short a run.
    "default": DEFAULT | {"block_rows": 4, "held_out": {"rows": 8, "every": 2}, "revisit": {"rows": 8, "every": 4},
                          "probe": DEFAULT["probe"] | {"every": 2}},
    # One level for the magnitude of each row.
    "published": {"filters": {"magnitude": {"norm": "l2", "scale": "linear"}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
                  "threshold": {"kind": "fixed", "drop": 1.0}, "probe": {"kind": "every"}},
}


def write_world(folder, rule):
    """Data of which twelve rows are one picture, a random UNet, and the configuration of one rank."""
    for name, rows, seed in (("train", SAMPLES, 1), ("held_out", 16, 2)):
        tiny.write_data(folder / f"{name}.h5", rows, seed)
    with h5py.File(folder / "train.h5", "r+") as file:
        for name in ("images", "text"):
            file[name][1:COPIES] = file[name][0]
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(tiny.UNET | {"block_out_channels": [16, 32]}).save_pretrained(folder / "base")
    config = {"seed": 5, "device": "cpu", "output_dir": str(folder / "trainer"),
              "data": {name: str(folder / f"{name}.h5") for name in ("train", "held_out")},
              "model": {"pretrained": str(folder / "base")}, "prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
              "proportion_empty_prompts": 0.1, "max_train_steps": STEPS, "train_batch_size": ROWS, "learning_rate": 4e-3,
              "lr_scheduler": "constant", "adam_weight_decay": 0.01, "max_grad_norm": 1.0, "sieve": copy.deepcopy(RULES[rule])}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return config


def trained(ranks, *command, **environment):
    result = torchrun(ranks, *command, **environment) if ranks > 1 else run(*command, **environment)
    assert result.returncode == 0, result.stdout + result.stderr


def both(folder, config, ranks):
    """Ledger and weights of the trainer and of the loop in Python."""
    config = config | {"train_batch_size": ROWS // ranks, "output_dir": str(folder / f"trainer-{ranks}")}
    path, mine = folder / f"run-{ranks}.yaml", folder / f"python-{ranks}"
    path.write_text(yaml.safe_dump(config))
    trained(ranks, BUILD / "trainer" / "memsieve-train", "--config", path)
    trained(ranks, sys.executable, RANK, path, mine)
    theirs = folder / f"trainer-{ranks}"
    weights, = theirs.glob(f"checkpoints/step-{STEPS:06}/unet/*.safetensors")
    return (visits(theirs / "ledger.h5"), load_file(weights)), (visits(mine / "ledger.h5"), load_file(mine / "weights.safetensors"))


def require_same_decisions(theirs, mine):
    (attributes, theirs), (more, mine) = theirs, mine
    assert attributes["configuration"] == more["configuration"] and theirs.dtype == mine.dtype and len(theirs) == len(mine)
    for name in EQUAL:
        np.testing.assert_array_equal(theirs[name], mine[name], err_msg=name)
    for name in set(MEASURED) & set(theirs.dtype.names):
        np.testing.assert_allclose(theirs[name], mine[name], rtol=0, atol=MEASURED[name], err_msg=name)
    # No score is so close to the level that rounding could decide: the verdicts' being equal is no luck.
    distance = np.abs(theirs["score"] - theirs["threshold"])
    assert np.nanmin(distance) > 2 * np.nanmax(np.abs(theirs["score"] - mine["score"]))


@pytest.mark.parametrize("rule", RULES)
def test_python_decides_as_the_trainer(tmp_path, rule):
    config = write_world(tmp_path, rule)
    ledgers = {}
    for ranks in (1, 2):
        (theirs, their_weights), (mine, my_weights) = both(tmp_path, config, ranks)
        require_same_decisions(theirs, mine)
        assert their_weights.keys() == my_weights.keys()
        for name, weight in their_weights.items():
            torch.testing.assert_close(my_weights[name], weight, rtol=0, atol=1e-3, msg=lambda text: f"{name}: {text}")
        ledgers[ranks] = mine[1]
    np.testing.assert_array_equal(ledgers[1]["weight"], ledgers[2]["weight"])
    rows = ledgers[1]
    trained_on = rows[rows["kind"] == 0]
    dropped = trained_on["weight"] == 0
    assert 0.02 < dropped.mean() < 0.9
    if rule == "default":  # all kinds of rows are there, and what is dropped is what is repeated
        assert set(rows["kind"]) == {0, 1, 2, 3}
        assert (trained_on["sample"][dropped] < COPIES).mean() > 0.7


def test_the_example_by_itself(tmp_path):
    """With draws of its own and the package's PassOverBatches: two ranks judge as one."""
    config = write_world(tmp_path, "default")
    ledgers = {}
    for ranks in (1, 2):
        path, folder = tmp_path / f"run-{ranks}.yaml", tmp_path / f"python-{ranks}"
        path.write_text(yaml.safe_dump(config | {"train_batch_size": ROWS // ranks, "max_train_steps": 40}))
        trained(ranks, sys.executable, ROOT / "examples" / "python" / "fine_tune.py", path, folder, PYTHONPATH=str(BUILD / "python"))
        rows = visits(folder / "ledger.h5")[1]
        assert set(rows["kind"]) == {0, 1, 2, 3} and (rows["weight"][rows["kind"] == 0] == 0).any()
        ledgers[ranks] = rows
        assert (folder / "unet" / "config.json").exists()
    for name in EQUAL:
        np.testing.assert_array_equal(ledgers[1][name], ledgers[2][name], err_msg=name)
