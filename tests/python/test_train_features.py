"""Runs of memsieve-train from tiny diffusers pipelines: what it starts from, what it leaves, and that nothing is lost between."""
import json
import shutil

import h5py
import numpy as np
import pytest
import tiny_pipeline
import torch
from conftest import BUILD, assert_refused, run
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

TRAIN = BUILD / "trainer" / "memsieve-train"
WEIGHTS = "diffusion_pytorch_model.safetensors"

YAML = """seed: 3
output_dir: run
device: cpu
data: {{train: train.h5, held_out: held_out.h5, validation: held_out.h5, prompts: held_out.h5}}
model: {{pretrained: {pipeline}}}
max_train_steps: 4
train_batch_size: 4
learning_rate: 0.001
validation: {{every: 4, draws: 2}}
sieve:
  filters:
    magnitude: {{scale: log}}
    prediction_error: {{scale: log}}
  held_out: {{rows: 2}}
"""


def write_data(path, rows, width, seed, sdxl):
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        file["latents"] = rng.standard_normal((rows, 4, 8, 8)).astype(np.float32)
        file["latents"].attrs["scaling_factor"] = 0.5
        file["text"] = rng.standard_normal((rows, 5, width)).astype(np.float32)
        file["null_text"] = np.zeros((5, width), np.float32)
        file.create_dataset("caption", data=[f"picture\n{i}" for i in range(rows)], dtype=h5py.string_dtype())
        if sdxl:
            file["pooled"] = rng.standard_normal((rows, 10)).astype(np.float32)
            file["null_pooled"] = np.zeros(10, np.float32)
            file["time_ids"] = np.tile(np.float32([64, 48, 0, 8, 16, 16]), (rows, 1))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline.stable_diffusion(folder / "sd", "v_prediction")
    tiny_pipeline.stable_diffusion_xl(folder / "sdxl")
    return folder


@pytest.fixture(params=["sd", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, pipelines, kind):
    sdxl = kind == "sdxl"
    for name, rows, seed in (("train", 16, 1), ("held_out", 8, 2)):
        write_data(tmp_path / f"{name}.h5", rows, 20 if sdxl else 8, seed, sdxl)
    (tmp_path / "run.yaml").write_text(YAML.format(pipeline=pipelines / kind))
    return tmp_path


def train(folder, *settings, resume=False):
    words = [word for setting in settings for word in ("--set", setting)] + (["--resume-from", "latest"] if resume else [])
    return run(TRAIN, "--config", "run.yaml", *words, cwd=folder, timeout=120)


def trained(folder, *settings, out="run", step=4, **more):
    done = train(folder, f"output_dir={out}", *settings, **more)
    assert done.returncode == 0, done.stderr
    return folder / out / "checkpoints" / f"step-{step:06}"


def weights(checkpoint, kind="unet"):
    return load_file(checkpoint / kind / WEIGHTS)


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder, out="run"):
    return [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]


def validation(folder, out):
    return [line["loss"] for line in metrics(folder, out) if line["kind"] == "validation"]


def test_from_a_pipeline_to_what_diffusers_opens(folder, pipelines, kind):
    checkpoint = trained(folder, "use_ema=true")
    start = UNet2DConditionModel.from_pretrained(pipelines / kind, subfolder="unet")
    for name in ("unet", "unet_ema"):
        unet, info = UNet2DConditionModel.from_pretrained(checkpoint, subfolder=name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert not equal(unet.state_dict(), start.state_dict())
        ours, theirs = dict(unet.config), dict(start.config)
        assert {k: v for k, v in ours.items() if not k.startswith("_")} == {k: v for k, v in theirs.items() if not k.startswith("_")}
    # The noise was the pipeline's, and the checkpoint says so.
    was = DDIMScheduler.from_pretrained(pipelines / kind, subfolder="scheduler").config
    now = DDIMScheduler.from_pretrained(checkpoint, subfolder="scheduler").config
    for key in ("prediction_type", "beta_schedule", "beta_start", "beta_end", "steps_offset", "set_alpha_to_one", "clip_sample"):
        assert was[key] == now[key], key
    assert f"prediction_type: {was['prediction_type']}" in (folder / "run" / "config.yaml").read_text()
    # A checkpoint is a place to start from, as a pipeline is.
    assert train(folder, "output_dir=again", f"model.pretrained={checkpoint}").returncode == 0


def test_another_prediction_than_the_pipelines_is_said(folder, kind):
    done = train(folder, "prediction_type=sample")
    assert done.returncode == 0
    said = "v_prediction" if kind == "sd" else "epsilon"
    assert f"prediction_type: is sample, but " in done.stderr and f"says {said}" in done.stderr


def test_random_flip_shows_the_mirrored_latents_and_changes_nothing_else(folder, kind):
    assert_refused(train(folder, "data.random_flip=true"), 3, "train.h5", "/latents_flipped", "--random-flip")
    plain = weights(trained(folder, out="plain"))
    for name, change in (("same", 0), ("other", 1)):
        for part in ("train", "held_out"):
            with h5py.File(folder / f"{part}.h5", "r+") as file:
                file.pop("latents_flipped", None)
                file["latents_flipped"] = file["latents"][:] + np.float32(change)
        found = weights(trained(folder, "data.random_flip=true", out=name))
        assert equal(found, plain) == (change == 0)


def test_gradient_checkpointing_changes_nothing_but_memory(folder):
    # A large epsilon: where a gradient is all but 0, Adam would blow rounding errors up to whole steps.
    kept = weights(trained(folder, "adam_epsilon=0.01", out="kept"))
    again = weights(trained(folder, "adam_epsilon=0.01", "gradient_checkpointing=true", out="again"))
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [
    ["noise_offset=0.1", "input_perturbation=0.1", "timestep_sampling=logit_normal", "snr_gamma=5", "prediction_type=flow"],
    ["rescale_betas_zero_snr=true", "prediction_type=v_prediction", "snr_gamma=5", "mixed_precision=fp16",
     "gradient_checkpointing=true", "lr_scheduler=cosine_with_restarts", "lr_warmup_steps=1"],
], ids=["flow", "fp16"])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, settings):
    settings = ["use_ema=true", "checkpointing_steps=2", "gradient_accumulation_steps=2", "train_batch_size=2", *settings]
    whole = trained(folder, *settings, out="whole")
    parts = trained(folder, *settings, out="parts")
    shutil.rmtree(parts)  # back to step 2
    trained(folder, *settings, out="parts", resume=True)
    for name in ("unet", "unet_ema"):
        assert equal(weights(whole, name), weights(parts, name))
    assert equal(load_file(whole / "optimizer.safetensors"), load_file(parts / "optimizer.safetensors"))
    assert validation(folder, "whole") == validation(folder, "parts")


def test_a_resumed_fp16_lora_run_equals_an_uninterrupted_one(folder):
    settings = ["lora.rank=2", "lora.target_modules=[to_q, to_v]", "mixed_precision=fp16", "use_ema=true", "checkpointing_steps=2",
                "loss_scale_growth_interval=3", "gradient_checkpointing=true"]
    whole, parts = trained(folder, *settings, out="whole"), trained(folder, *settings, out="parts")
    shutil.rmtree(parts)
    trained(folder, *settings, out="parts", resume=True)
    for name in ("lora", "lora_ema"):
        assert equal(*(load_file(path / name / "pytorch_lora_weights.safetensors") for path in (whole, parts)))
    states = [load_file(path / "optimizer.safetensors") for path in (whole, parts)]
    assert equal(*states) and states[0]["updates"] > 0 and states[0]["loss_scale"] > 0


@pytest.mark.parametrize("setting", ["noise_offset=0.1", "input_perturbation=0.1", "timestep_sampling=logit_normal", "snr_gamma=5",
                                     "prediction_type=flow", "proportion_empty_prompts=0.9"])
@pytest.mark.parametrize("kind", ["sd"])
def test_every_option_does_something(folder, setting, kind):
    assert not equal(weights(trained(folder, out="without")), weights(trained(folder, setting, out="with")))


@pytest.mark.parametrize("kind", ["sdxl"])
@pytest.mark.parametrize("name, value", [("pooled", np.ones((8, 10), np.float32)), ("time_ids", np.full((8, 6), 7, np.float32))])
def test_nothing_of_sdxls_conditioning_is_lost(folder, kind, name, value):
    trained(folder, "max_train_steps=1", "validation.every=1", out="before", step=1)
    with h5py.File(folder / "held_out.h5", "r+") as file:
        file[name][...] = value
    trained(folder, "max_train_steps=1", "validation.every=1", out="after", step=1)
    assert validation(folder, "before")[0] != validation(folder, "after")[0]


@pytest.mark.parametrize("kind", ["sdxl"])
def test_the_magnitude_knows_the_pooled_null(folder, kind):
    def magnitudes(out):
        trained(folder, "max_train_steps=1", "proportion_empty_prompts=0", out=out, step=1)
        with h5py.File(folder / out / "ledger.h5") as file:
            return file["visits"]["raw_magnitude"][:4], file["visits"]["raw_prediction_error"][:4]

    before, loss_before = magnitudes("before")
    with h5py.File(folder / "train.h5", "r+") as file:
        file["null_pooled"][...] = 3
    after, loss_after = magnitudes("after")
    assert np.isfinite(before).any() and not np.array_equal(before, after, equal_nan=True)
    assert np.array_equal(loss_before, loss_after)  # captioned rows do not see it


def drawn(folder, out):
    with h5py.File(folder / out / "samples" / "step-000001.h5") as file:
        return file["images"][...]


DRAW = ["max_train_steps=1", "sampling.every=1", "sampling.num_inference_steps=3", "sampling.num_images_per_prompt=2"]


def test_previews_are_decoded_by_the_pipelines_vae(folder, pipelines, kind):
    scale = AutoencoderKL.from_pretrained(pipelines / kind / "vae").config.scaling_factor
    for name in ("train.h5", "held_out.h5"):
        with h5py.File(folder / name, "r+") as file:
            file["latents"].attrs["scaling_factor"] = scale
            file["caption"][3] = "picture\r3"
    trained(folder, *DRAW, f"sampling.vae={pipelines / kind / 'vae'}", step=1)
    images = drawn(folder, "run")
    assert images.shape == (8, 2, 3, 16, 16) and images.std() > 5
    assert (folder / "run" / "samples" / "step-000001.png").stat().st_size > 1000
    assert (folder / "run" / "samples" / "captions.txt").read_text() == "".join(f"picture {i}\n" for i in range(8))
    # The same noise without guidance is another picture, so the captions were there.
    trained(folder, *DRAW, "sampling.guidance_scale=1", f"sampling.vae={pipelines / kind / 'vae'}", out="plain", step=1)
    assert not np.array_equal(images, drawn(folder, "plain"))


@pytest.mark.parametrize("kind", ["sd"])
def test_previews_that_cannot_be(folder, pipelines, kind):
    assert_refused(train(folder, *DRAW), 2, "held_out.h5", "latents", "sampling.vae")
    assert_refused(train(folder, *DRAW, f"sampling.vae={pipelines / kind / 'vae'}"), 2, "sampling.vae", "scaling_factor", "0.18215",
                   "0.5")
    done = train(folder, *DRAW, "sampling.vae=nowhere")
    assert_refused(done, done.returncode, "nowhere")
    assert done.returncode in (2, 3)


def test_a_data_set_for_another_model(folder, pipelines, kind):
    other = pipelines / ("sd" if kind == "sdxl" else "sdxl")
    config = json.loads((pipelines / kind / "unet" / "config.json").read_text())
    if kind == "sd":  # the same but for text_time
        config.update(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=34)
    else:
        config.update(addition_embed_type=None, addition_time_embed_dim=None, projection_class_embeddings_input_dim=None)
    (folder / "unet.json").write_text(json.dumps(config))
    text = (folder / "run.yaml").read_text().replace(f"pretrained: {pipelines / kind}", "config: unet.json")
    (folder / "run.yaml").write_text(text)
    assert_refused(train(folder), 2, "train.h5", "/pooled", "/time_ids")
    assert_refused(train(folder, "model.config=", f"model.pretrained={other}"), 2, "text dimension")


@pytest.mark.parametrize("kind", ["sdxl"])
def test_pooled_text_of_another_width(folder, kind):
    for name, rows in (("train.h5", 16), ("held_out.h5", 8)):
        with h5py.File(folder / name, "r+") as file:
            del file["pooled"], file["null_pooled"]
            file["pooled"], file["null_pooled"] = np.zeros((rows, 9), np.float32), np.zeros(9, np.float32)
    assert_refused(train(folder), 2, "pooled", "10", "9")


@pytest.mark.parametrize("kind", ["sd"])
def test_rotation_after_resuming_from_an_early_checkpoint(folder, kind):
    checkpoints = folder / "run" / "checkpoints"
    trained(folder, "checkpointing_steps=1", "validation.every=0")
    assert sorted(p.name[-1] for p in checkpoints.iterdir()) == ["1", "2", "3", "4"]
    early = ["checkpointing_steps=1", "validation.every=0", "checkpoints_total_limit=1", "max_train_steps=3",
             f"resume_from_checkpoint={checkpoints}/step-000001"]
    trained(folder, *early, step=3)
    assert [p.name for p in checkpoints.iterdir()] == ["step-000003"]
