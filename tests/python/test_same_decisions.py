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
import torch._dynamo  # noqa: F401 (DistributedDataParallel needs it; here it is imported for all ranks)
import yaml
from conftest import BUILD, ROOT, assert_refused, forked, on_ranks, run
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from test_ledger import visits

RANK = Path(__file__).parent / "same_decisions_rank.py"
STEPS, ROWS, SAMPLES, COPIES = 72, 8, 40, 12
# What is decided and must be equal; what is measured and may differ as rounding does.
EQUAL = ("step", "epoch", "sample", "group", "kind", "timestep", "captioned", "flagged", "weight", "threshold", "alike")
MEASURED = {"raw_start_gap": 1e-4, "raw_magnitude": 5e-4, "z_start_gap": 5e-3, "z_magnitude": 5e-4, "score": 5e-3}

DEFAULT = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())["sieve"]
# How the noise grows and what the model predicts, so that both kinds are tried.
NOISE = {"default": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"},
         "published": {"prediction_type": "epsilon", "beta_schedule": "linear"}}
RULES = {
    # What docs/python.md recommends; held-out rows, probes and looks come oftener, for so short a run.
    "default": DEFAULT | {"block_rows": 4, "held_out": {"rows": 8, "every": 2}, "revisit": {"rows": 8, "every": 4},
                          "probe": DEFAULT["probe"] | {"every": 2}},
    # One level for the magnitude of each row.
    "published": {"filters": {"magnitude": {"norm": "l2", "scale": "linear"}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
                  "threshold": {"kind": "fixed", "drop": 0.7}, "probe": {"kind": "every"}},
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
              "model": {"pretrained": str(folder / "base")}, **NOISE[rule],
              "proportion_empty_prompts": 0.1, "max_train_steps": STEPS, "train_batch_size": ROWS, "learning_rate": 4e-3,
              "lr_scheduler": "constant", "adam_weight_decay": 0.01, "max_grad_norm": 1.0, "sieve": copy.deepcopy(RULES[rule])}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return config


def require_done(result):
    assert result.returncode == 0, result.stdout + result.stderr


def both(folder, config, ranks):
    """Ledger and weights of the trainer and of the loop in Python."""
    config = config | {"train_batch_size": ROWS // ranks, "output_dir": str(folder / f"trainer-{ranks}")}
    path, mine = folder / f"run-{ranks}.yaml", folder / f"python-{ranks}"
    path.write_text(yaml.safe_dump(config))
    require_done(on_ranks(ranks, BUILD / "trainer" / "memsieve-train", "--config", path))
    require_done(forked(ranks, RANK, path, mine))
    theirs = folder / f"trainer-{ranks}"
    weights, = theirs.glob(f"checkpoints/step-{STEPS:06}/unet/*.safetensors")
    return (visits(theirs / "ledger.h5"), load_file(weights)), (visits(mine / "ledger.h5"), load_file(mine / "weights.safetensors"))


def settled(theirs, mine):
    """How many rows come before the first step in which a score is so close to its level that rounding, which differs from CPU to CPU, may
    decide: whose distance is no more than twice what the scores have differed by so far."""
    rows = min(len(theirs), len(mine))
    differed = np.fmax.accumulate(np.abs(theirs["score"][:rows] - mine["score"][:rows]))
    close = np.abs(theirs["score"][:rows] - theirs["threshold"][:rows]) <= 2 * differed
    return int((theirs["step"] < theirs["step"][close.argmax()]).sum()) if close.any() else max(len(theirs), len(mine))


def require_same_decisions(theirs, mine):
    """Returns whether all rows could be compared."""
    rows = settled(theirs, mine)
    assert rows >= max(len(theirs), len(mine)) / 2, f"only {rows} rows could be compared"
    one, two = theirs[:rows], mine[:rows]
    assert ((one["kind"] == 0) & (one["weight"] == 0)).any() and len(one) == len(two) and one.dtype == two.dtype
    for name in EQUAL:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    for name in set(MEASURED) & set(one.dtype.names):
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=MEASURED[name], err_msg=name)
    return rows >= len(theirs)


@pytest.mark.parametrize("rule, tried", [("default", (1, 2)), ("published", (2,))])
def test_python_decides_as_the_trainer(tmp_path, rule, tried):
    config = write_world(tmp_path, rule)
    ledgers = {}
    for ranks in tried:
        (theirs, their_weights), (mine, my_weights) = both(tmp_path, config, ranks)
        (attributes, theirs), (more, ledgers[ranks]) = theirs, mine
        assert attributes["configuration"] == more["configuration"] and their_weights.keys() == my_weights.keys()
        if require_same_decisions(theirs, ledgers[ranks]):
            for name, weight in their_weights.items():
                torch.testing.assert_close(my_weights[name], weight, rtol=0, atol=1e-3, msg=lambda text: f"{name}: {text}")
    require_same_decisions(ledgers[tried[0]], ledgers[2])
    rows = ledgers[2]
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
        require_done(forked(ranks, ROOT / "examples" / "python" / "fine_tune.py", path, folder))
        rows = visits(folder / "ledger.h5")[1]
        assert set(rows["kind"]) == {0, 1, 2, 3}
        ledgers[ranks] = rows
        assert (folder / "unet" / "config.json").exists()
    require_same_decisions(ledgers[1], ledgers[2])


def test_the_example_refuses_what_it_does_not_know(tmp_path):
    config = write_world(tmp_path, "default")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config | {"prediction_type": "sample"}))
    result = run(sys.executable, ROOT / "examples" / "python" / "fine_tune.py", tmp_path / "run.yaml", tmp_path / "out")
    assert_refused(result, 1, "prediction_type is sample")
