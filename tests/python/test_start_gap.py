"""The starting model beside the trained one, in whole runs: what its signal says, what it costs, and what resuming asks of it."""
import json
import re
import shutil

import numpy as np
import pytest
import tiny
from conftest import BUILD, assert_refused, on_ranks, run
from safetensors.torch import load_file
from test_ledger import visits

TRAIN = BUILD / "trainer" / "memsieve-train"
START = ("sieve.filters.start_gap.timestep_min=0", "sieve.probe.kind=every")
LORA = ("lora.rank=2", "learning_rate=0.01")


def train(folder, *words, more=(), ranks=1):
    command = [TRAIN, "--config", "run.yaml", *(part for word in words for part in ("--set", word)), *more]
    return on_ranks(ranks, *command, cwd=folder) if ranks > 1 else run(*command, cwd=folder)


def trained(folder, *words, **options):
    result = train(folder, *words, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def first_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_world")
    config = tiny.write_run(folder)
    trained(folder, "output_dir=first", "filter=off", "max_train_steps=2")
    shutil.copytree(folder / "first" / "checkpoints" / "step-000002" / "unet", folder / "base" / "unet")
    config.write_text(config.read_text().replace("config: unet.json", "pretrained: base"))
    return folder


@pytest.fixture
def world(tmp_path, first_world):
    """A run that fine-tunes the model in its folder's base, of 4 steps."""
    return shutil.copytree(first_world, tmp_path / "world")


def gaps(folder, name):
    """Of the captioned visits, held-out rows' too: steps and gaps; 0 where there is no score, as both models answered alike."""
    rows = visits(folder / name / "ledger.h5")[1]
    assert not np.isfinite(rows["raw_start_gap"][rows["captioned"] == 0]).any() and not (np.abs(rows["raw_start_gap"]) < 1e-4).any()
    rows = rows[rows["captioned"] == 1]
    assert set(rows["kind"]) == {0, 1}
    return rows["step"], np.nan_to_num(rows["raw_start_gap"])


@pytest.mark.parametrize("lora", [(), LORA])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_gap_is_0_as_long_as_nothing_is_learned(world, lora, precision):
    words = (*START, *lora, f"mixed_precision={precision}")
    trained(world, *words, "learning_rate=0", "output_dir=still")
    _, gap = gaps(world, "still")
    # Rows of other batches ride along with the starting model's, so sums may be taken in another order.
    assert np.abs(gap).max() < (1e-4 if precision == "no" else 1e-2)
    trained(world, *words, "learning_rate=0.1", "output_dir=moving")
    step, gap = gaps(world, "moving")
    assert np.abs(gap[step == 0]).max() < (1e-4 if precision == "no" else 1e-2)
    assert np.abs(gap[step == 3]).max() > 0.02


def test_the_gap_is_the_difference_of_the_errors_of_two_runs(world):
    """Both see the same noise: the one that learns nothing has the starting model's errors."""
    for name, rate in (("still", 0), ("moving", 0.01)):
        trained(world, *START, f"output_dir={name}", f"learning_rate={rate}")
    still, moving = (visits(world / name / "ledger.h5")[1] for name in ("still", "moving"))
    assert (still["sample"] == moving["sample"]).all() and (still["timestep"] == moving["timestep"]).all()
    # raw_prediction_error is minus the error's logarithm.
    expected = moving["raw_prediction_error"] - still["raw_prediction_error"]
    assert np.abs(expected[moving["step"] == 3]).max() > 1e-3
    scored = np.isfinite(moving["raw_start_gap"])
    np.testing.assert_allclose(moving["raw_start_gap"][scored], expected[scored], atol=1e-4)
    assert np.nanmax(np.abs(expected[~scored])) < 2e-4 and scored[(moving["step"] > 0) & (moving["captioned"] == 1)].mean() > 0.9


def test_a_dry_run_tells_what_the_copy_takes(world):
    numbers = sum(t.numel() for t in load_file(world / "base/unet/diffusion_pytorch_model.safetensors").values())
    said = trained(world, *START, more=["--dry-run"])
    assert f"a frozen copy of the starting model takes {numbers * 4 / 2**20:.1f} MiB on each rank" in said
    mixed = re.search(r"takes ([\d.]+) MiB", trained(world, *START, "mixed_precision=bf16", more=["--dry-run"]))
    assert float(mixed[1]) < 0.6 * numbers * 4 / 2**20 + 0.05
    assert "the starting model is the trained one without adapters" in trained(world, *START, *LORA, more=["--dry-run"])
    assert "starting model" not in trained(world, more=["--dry-run"])


@pytest.mark.parametrize("lora", [(), LORA])
def test_a_resumed_run_compares_with_where_it_began(world, lora):
    words = (*START, *lora, "train_batch_size=2")
    trained(world, *words, "output_dir=whole", ranks=2)
    trained(world, *words, "output_dir=parts", "max_train_steps=2", ranks=2)
    trained(world, *words, "output_dir=parts", more=["--resume-from", "latest"], ranks=2)
    whole, parts = (visits(world / name / "ledger.h5")[1] for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()
    folder = "checkpoints/step-000004"
    for file in (path.relative_to(world / "whole" / folder) for path in (world / "whole" / folder).rglob("*.safetensors")):
        assert (world / "whole" / folder / file).read_bytes() == (world / "parts" / folder / file).read_bytes(), file


def test_another_model_to_start_from_is_refused(world):
    words = (*START, "max_train_steps=3")
    trained(world, *words, "checkpointing_steps=2", "max_train_steps=2")
    trained(world, "output_dir=second", "filter=off", "seed=9", "max_train_steps=1")
    shutil.copytree(world / "base", world / "kept")
    shutil.rmtree(world / "base")
    shutil.copytree(world / "second" / "checkpoints" / "step-000001" / "unet", world / "base" / "unet")
    assert_refused(train(world, *words, more=["--resume-from", "latest"]), 2, "run.yaml", "model.pretrained",
                   "is not the UNet that", "step-000002", "compares with")
    shutil.rmtree(world / "base")
    (world / "kept").rename(world / "base")
    trained(world, *words, more=["--resume-from", "latest"])


def test_a_checkpoint_that_knows_no_starting_model_is_resumed(world):
    """As earlier versions made them; without a filter that asks for it, it may be any."""
    trained(world, "max_train_steps=2")
    path = world / "run/checkpoints/step-000002/state.json"
    state = json.loads(path.read_text())
    assert state.pop("base") == ""
    for name in ("crc32", "state_crc32"):  # nor did these know what they hold
        state.pop(name)
    path.write_text(json.dumps(state))
    shutil.rmtree(world / "base")
    trained(world, more=["--resume-from", "latest"])
    assert_refused(train(world, *START, more=["--resume-from", "latest"]), 2, "sieve.filters.start_gap")


def test_a_prediction_that_the_trainer_does_not_make_is_refused(world):
    assert_refused(train(world, "sieve.filters.guidance_gap.timestep_min=0"), 2, "run.yaml", "sieve.filters",
                   "'guidance'", "a loop of your own")
