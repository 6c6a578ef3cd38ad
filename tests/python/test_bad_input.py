"""memsieve-train and bad input: one clear line, the right exit code (2 usage, 3 data, 4 a peer), and no harm done."""
import json
import os
import shutil
import socket
import subprocess

import h5py
import numpy as np
import pytest
import tiny
from conftest import BUILD, assert_refused, run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

TRAIN = BUILD / "trainer" / "memsieve-train"


@pytest.fixture
def folder(tmp_path):
    tiny.write_run(tmp_path)
    return tmp_path


def train(folder, *arguments, **environment):
    return run(TRAIN, "--config", "run.yaml", *arguments, cwd=folder, timeout=120, **environment)


def edit(folder, before, after):
    text = (folder / "run.yaml").read_text()
    assert before in text
    (folder / "run.yaml").write_text(text.replace(before, after))


def line_of(folder, text):
    return (folder / "run.yaml").read_text().splitlines().index(text) + 1


def test_the_good_run_is_good(folder):
    assert train(folder).returncode == 0
    assert (folder / "run" / "metrics.jsonl").is_file()


# Usage: the command line.

def test_no_config(folder):
    assert_refused(run(TRAIN, cwd=folder), 2, "--config")


def test_unknown_option(folder):
    assert_refused(train(folder, "--confg"), 2, "--confg")


def test_config_missing(folder):
    assert_refused(run(TRAIN, "--config", "none.yaml", cwd=folder), 2, "none.yaml")


# YAML: file, line, key, remedy.

@pytest.mark.parametrize("before, after, words", [
    ("max_train_steps: 4", "max_trian_steps: 4", ["max_trian_steps", "did you mean 'max_train_steps'?"]),
    ("max_train_steps: 4", "max_train_steps: 0", ["max_train_steps", "0"]),
    ("max_train_steps: 4", "max_train_steps: many", ["max_train_steps", "many"]),
    ("learning_rate: 0.001", "learning_rate: -1", ["learning_rate", "-1"]),
    ("prediction_type: v_prediction", "prediction_type: v", ["prediction_type", "'v'", "v_prediction"]),
    ("  train: train.h5", "  trian: train.h5", ["data.trian", "did you mean 'train'?"]),
    ("    magnitude: {scale: log}", "    magnitude: {skale: log}", ["sieve.filters.magnitude.skale", "did you mean 'scale'?"]),
    ("    magnitude: {scale: log}", "    magnitud: {scale: log}", ["sieve.filters.magnitud", "did you mean 'magnitude'?"]),
    ("  held_out: {rows: 2}", "  held_out: {rows: -2}", ["sieve.held_out.rows", "-2"]),
    ("  held_out: {rows: 2}", "  held_out: {rows: 0}", ["sieve.held_out.rows"]),
    ("    magnitude: {scale: log}", "    magnitude: {scale: log, weight: .nan}", ["sieve.filters.magnitude.weight", ".nan"]),
    ("    magnitude: {scale: log}", "    magnitude: {timestep_min: 1000}", ["sieve.filters.magnitude.timestep_min",
                                                                            "is 1000, but the schedule has 1000 timesteps"]),
    ("learning_rate: 0.001", "adam_epsilon: -1e-8", ["adam_epsilon", "-1e-8"]),
    ("  held_out: {rows: 2}", "  held_out: {rows: 2", ["run.yaml"]),
])
def test_yaml(folder, before, after, words):
    edit(folder, before, after)
    result = train(folder)
    assert_refused(result, 2, *words)
    if "{rows: 2\n" not in (folder / "run.yaml").read_text():
        assert f"run.yaml:{line_of(folder, after)}:" in result.stderr
    assert not list(folder.glob("run/*"))


@pytest.mark.parametrize("look", [[], ["--dry-run"], ["--print-config"]])
def test_yaml_in_two_documents(folder, look):
    (folder / "run.yaml").write_text(tiny.YAML + "---\nseed: 4\n")
    assert_refused(train(folder, *look), 2, f"run.yaml:{line_of(folder, 'seed: 4')}: a second YAML document")
    (folder / "run.yaml").write_text("---\n" + tiny.YAML + "...\n")
    assert train(folder, "--dry-run").returncode == 0


def test_yaml_key_twice(folder):
    (folder / "run.yaml").write_text(tiny.YAML + "seed: 4\n")
    assert_refused(train(folder), 2, "run.yaml", "seed")


@pytest.mark.parametrize("setting, words", [
    ("max_trian_steps=3", ["max_trian_steps", "did you mean 'max_train_steps'?"]),
    ("train_batch_size=0", ["train_batch_size", "0"]),
    ("train_batch_size", ["train_batch_size", "="]),
])
def test_set(folder, setting, words):
    assert_refused(train(folder, "--set", setting), 2, *words)


# Data.

def test_data_missing(folder):
    (folder / "train.h5").unlink()
    assert_refused(train(folder), 3, "train.h5", "no such file")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.6])
def test_data_truncated(folder, keep):
    path = folder / "train.h5"
    os.truncate(path, int(path.stat().st_size * keep))
    assert_refused(train(folder), 3, "train.h5")


def test_data_of_another_kind(folder):
    with h5py.File(folder / "train.h5", "r+") as file:
        file.attrs["format"] = "something"
    assert_refused(train(folder), 3, "train.h5", "something")


@pytest.mark.parametrize("name, value, words", [
    ("images", np.zeros((16, 8, 8), np.uint8), ["/images", "[16, 8, 8]"]),
    ("images", np.zeros((16, 1, 8, 8), np.uint8), ["/images", "1 channels"]),
    ("images", np.zeros((16, 3, 8, 8), np.float32), ["/images", "float32", "uint8"]),
    ("images", np.zeros((0, 3, 8, 8), np.uint8), ["/images", "empty"]),
    ("images", None, ["/images", "/latents"]),
    ("text", np.zeros((16, 5), np.float32), ["/text", "[16, 5]"]),
    ("text", np.zeros((16, 5, 6), np.int32), ["/text", "int32", "float"]),
    ("text", np.zeros((15, 5, 6), np.float32), ["/text", "15 rows", "16"]),
    ("text", np.zeros((16, 5, 7), np.float32), ["/null_text", "5 x 6", "5 x 7"]),
    ("text", np.full((16, 5, 6), np.nan, np.float32), ["/text", "row 0", "NaN"]),
    ("null_text", None, ["/null_text", "no such dataset"]),
    ("caption", None, ["/caption", "no such dataset"]),
    ("group_id", np.zeros(3, np.int64), ["/group_id", "3 rows", "16"]),
    ("group_id", np.zeros(16, np.float32), ["/group_id", "float32"]),
])
def test_data_sets(folder, name, value, words):
    tiny.replace(folder / "train.h5", name, value)
    assert_refused(train(folder), 3, "train.h5", *words)


def test_text_does_not_fit_the_model(folder):
    for name in ("train.h5", "held_out.h5"):
        tiny.replace(folder / name, "text", np.zeros((16 if name == "train.h5" else 8, 5, 7), np.float32))
        tiny.replace(folder / name, "null_text", np.zeros((5, 7), np.float32))
    result = train(folder)
    assert result.returncode in (2, 3)
    assert_refused(result, result.returncode, "7", "6")


def test_held_out_of_another_shape(folder):
    tiny.replace(folder / "held_out.h5", "images", np.zeros((8, 3, 16, 16), np.uint8))
    assert_refused(train(folder), 3, "held_out.h5", "train.h5")


def test_nan_picture(tmp_path):
    tiny.write_run(tmp_path, latents=True)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["latents"][5, 2, 1, 1] = np.nan
    assert_refused(train(tmp_path, "--set", "max_train_steps=20"), 3, "train.h5", "/latents", "row 5", "NaN")


def test_batch_bigger_than_the_data(folder):
    assert_refused(train(folder, "--set", "train_batch_size=17"), 2, "17", "16")


# The run folder.

def test_run_folder_cannot_be_made(folder):
    (folder / "file").write_text("")
    assert_refused(train(folder, "--set", "output_dir=file/run"), 2, "file/run", "cannot be made")


def test_run_folder_holds_another_run(folder):
    assert train(folder).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    assert_refused(train(folder), 2, "run holds run ", "--resume-from auto")
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}


def test_dry_run_looks_at_the_run_folder_and_at_the_checkpoint(folder):
    assert train(folder, "--dry-run").returncode == 0 and not (folder / "run").exists()
    assert train(folder, "--set", "max_train_steps=2").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    assert_refused(train(folder, "--dry-run"), 2, "run holds run ", "--resume-from auto")
    resumed = train(folder, "--dry-run", "--resume-from", "latest")
    assert resumed.returncode == 0 and "dry run" in resumed.stderr + resumed.stdout, resumed.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    os.truncate(folder / "run" / "checkpoints" / "step-000002" / "optimizer.safetensors", 100)
    assert_refused(train(folder, "--dry-run", "--resume-from", "latest"), 3, "optimizer.safetensors")


# A model that gives NaN or Inf.

@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """The folder of a run of two steps, to be copied."""
    folder = tmp_path_factory.mktemp("two_steps")
    tiny.write_run(folder)
    result = train(folder, "--set", "checkpointing_steps=2", "--set", "max_train_steps=2")
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture
def made(folder, two_steps):
    return shutil.copytree(two_steps / "checkpoints" / "step-000002" / "unet", folder / "made" / "unet")


def broken_model(unet, value=3e38):
    """Words for a UNet whose answers are so large that their squares are Inf; or, with a value of NaN or Inf, no numbers at all."""
    path = unet / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][:] = value
    save_file(weights, path)
    return ["--set", f"model.pretrained={unet}", "--set", "model.config="]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("look", [[], ["--dry-run"]])
def test_weights_that_are_no_numbers(folder, made, value, look):
    assert_refused(train(folder, *broken_model(made, value), *look), 3, "made/unet: conv_out.bias", "NaN or Inf")


def test_adapters_that_are_no_numbers(folder):
    made = train(folder, "--set", "max_train_steps=1", "--set", "output_dir=made", "--set", "lora.rank=2")
    assert made.returncode == 0, made.stderr
    path = folder / "made" / "checkpoints" / "step-000001" / "lora" / "pytorch_lora_weights.safetensors"
    with safe_open(path, "np") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    next(iter(weights.values()))[0, 0] = np.nan
    save_file(weights, path, metadata)
    assert_refused(train(folder, "--set", f"lora.pretrained={path}", "--set", "lora.rank=2", "--dry-run"), 3, "NaN or Inf", path.name)


def test_negative_epsilon(folder):
    (folder / "unet.json").write_text(json.dumps({**tiny.UNET, "norm_eps": -1e-5}))
    assert_refused(train(folder, "--dry-run"), 2, "unet.json: norm_eps: -1e-05", "[0, 1]")


def ended_with(result, code, *words):
    """A run that had begun: its last line says why it ended."""
    assert result.returncode == code, result.stderr
    for word in words:
        assert word in result.stderr.strip().splitlines()[-1], result.stderr


def test_nan_of_the_starting_model_names_the_sample(folder, made):
    words = broken_model(made)
    result = train(folder, *words, "--set", "sieve.reference.kind=start_model")
    ended_with(result, 5, "reference pass: rank 0: held-out picture 0", "NaN or Inf", "on_nonfinite: skip")


def test_nan_in_every_step_ends_a_run_that_skips_them(folder, made):
    words = broken_model(made)
    skip = ("--set", "sieve.on_nonfinite=skip", "--set", "max_train_steps=40", "--set", "max_nonfinite_steps=3")
    ended_with(train(folder, *words, *skip), 5, "NaN or Inf in 3 steps in a row", "step 2")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


# Checkpoints.

@pytest.fixture
def checkpoint(folder, two_steps):
    shutil.copytree(two_steps, folder / "run")
    return folder / "run" / "checkpoints" / "step-000002"


def resume(folder):
    return train(folder, "--resume-from", "latest")


def test_resume_goes_on(folder, checkpoint):
    result = resume(folder)
    assert result.returncode == 0, result.stderr


def test_resume_from_nothing(folder):
    assert_refused(resume(folder), 3, "holds no checkpoint")


def test_resume_from_nowhere(folder):
    assert_refused(train(folder, "--resume-from", "nowhere"), 3, "nowhere")


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "optimizer.safetensors", "sieve.safetensors",
                                  "state.json"])
@pytest.mark.parametrize("keep", [None, 0.0, 0.5])
def test_torn_checkpoint(folder, checkpoint, name, keep):
    path = checkpoint / name
    if keep is None:
        path.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * keep))
    assert_refused(resume(folder), 3, name.rpartition("/")[2])


# Plug-ins.

def test_plugin_without_stamp(folder):
    (folder / "plugin.c").write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "plugin.so", folder / "plugin.c"], check=True)
    assert_refused(train(folder, "--set", "sieve.plugins=[plugin.so]"), 2, "plugin.so", "no stamp")


@pytest.mark.parametrize("look", ["--print-config", "--dry-run"])
def test_looking_runs_no_plugin(folder, look):
    named = ("--set", "sieve.plugins=[/nowhere/none.so]")
    assert_refused(train(folder, look, *named), 2, "run.yaml: sieve.plugins: /nowhere/none.so is not opened", "--load-plugins")
    assert_refused(train(folder, look, "--load-plugins", *named), 2, "/nowhere/none.so", "cannot be opened")
    assert train(folder, look, "--load-plugins").returncode == 0


# Launchers.

@pytest.mark.parametrize("environment, words", [
    ({"WORLD_SIZE": "2"}, ["RANK"]),
    ({"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}, ["WORLD_SIZE"]),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}, ["RANK", "WORLD_SIZE", "2"]),
    ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}, ["WORLD_SIZE", "two"]),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
      "MASTER_PORT": "29511"}, ["LOCAL_WORLD_SIZE", "WORLD_SIZE"]),
])
def test_contradictory_world(folder, environment, words):
    assert_refused(train(folder, **environment), 2, *words)


def test_port_in_use(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = train(folder, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                       MASTER_PORT=str(port))
    assert_refused(result, 2, str(port), "in use")
