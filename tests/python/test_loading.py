"""How rows reach the trainer changes no number: held in memory or read from the disk, ahead of the step or in it."""
import shutil

import h5py
import numpy as np
import pytest
import tiny
from conftest import BUILD, assert_refused, run

TRAIN = BUILD / "trainer" / "memsieve-train"
STEPS = 6


def make_folder(folder, deviation=0.5):
    """A set of latent distributions (deviation None: of latents), trained on for three epochs in two micro-batches a step."""
    tiny.write_run(folder, latents=True)
    for name in ("train.h5", "held_out.h5"):
        with h5py.File(folder / name, "r+") as file:
            file["latents"].attrs.update(scaling_factor=0.5, shift_factor=0.25)
            if deviation is not None:
                file["latent_std"] = np.full(file["latents"].shape, deviation, np.float16)
    return folder


def train(folder, out, *settings, arguments=(), code=0):
    words = [word for setting in (f"output_dir={out}", f"max_train_steps={STEPS}", "gradient_accumulation_steps=2",
                                  "checkpointing_steps=2", "sieve.reference.kind=start_model", *settings)
             for word in ("--set", setting)]
    result = run(TRAIN, "--config", "run.yaml", *words, *arguments, cwd=folder, timeout=120)
    assert result.returncode == code, result.stderr
    return result


def outcome(folder, out, step=STEPS):
    checkpoint = folder / out / "checkpoints" / f"step-{step:06}"
    with h5py.File(folder / out / "ledger.h5", "r", libver="latest", swmr=True) as file:
        visits = file["visits"][:].tobytes()
    return [(checkpoint / name).read_bytes()
            for name in ("unet/diffusion_pytorch_model.safetensors", "optimizer.safetensors", "sieve.safetensors")] + [visits]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with a run that reads everything in the step itself."""
    folder = make_folder(tmp_path_factory.mktemp("loading"))
    train(folder, "plain", "data.prefetch=0", "data.cache_mb=256")
    return folder


@pytest.mark.parametrize("prefetch, cache", [(0, 0), (1, 0), (2, 256), (100, 0)])
def test_bit_for_bit_the_same(plain, prefetch, cache):
    train(plain, f"{prefetch}-{cache}", f"data.prefetch={prefetch}", f"data.cache_mb={cache}")
    assert outcome(plain, f"{prefetch}-{cache}") == outcome(plain, "plain")


def test_resuming_with_another_prefetch_is_the_uninterrupted_run(plain):
    train(plain, "resumed", "data.prefetch=3", "max_train_steps=2")
    train(plain, "resumed", "data.prefetch=0", "data.cache_mb=0", arguments=("--resume-from", "latest"))
    assert outcome(plain, "resumed") == outcome(plain, "plain")


def test_latents_are_drawn(plain, tmp_path):
    """With deviations of 0 the run is that on the means; with others it is another."""
    zero, none = make_folder(tmp_path / "zero", 0), make_folder(tmp_path / "none", None)
    train(zero, "run")
    train(none, "run")
    assert outcome(zero, "run") == outcome(none, "run") != outcome(plain, "plain")


def test_an_unreadable_row_ends_the_run_at_its_step(plain, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("plain", "*-*", "resumed"))
    with h5py.File(folder / "train.h5", "r+") as file:
        file["latents"][5] = np.nan
    ends = []
    for prefetch in (0, 1, 100):
        result = train(folder, f"run{prefetch}", "data.cache_mb=0", f"data.prefetch={prefetch}",
                       "sieve.reference.kind=none", "gradient_accumulation_steps=1", "log_every=1", code=3)
        said = result.stderr.strip().splitlines()
        assert "train.h5: /latents: row 5 holds a NaN" in said[-1] and sum("error" in line for line in said) == 1
        ends.append([line.split("step ")[1].split()[0] for line in said if "step " in line and "loss" in line])
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("setting", ["data.prefetch=-1", "data.cache_mb=-1", "data.prefetch=two"])
def test_bad_settings(plain, setting):
    result = run(TRAIN, "--config", "run.yaml", "--set", setting, cwd=plain)
    assert_refused(result, 2, setting.split("=")[0])


@pytest.fixture
def tmp_path(tmp_path):
    for name in ("zero", "none"):
        (tmp_path / name).mkdir()
    return tmp_path
