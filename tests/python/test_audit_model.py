"""Which model memsieve-audit loads: UNet folder, pipeline, checkpoint, averaged weights, adapters."""
import json
import os
import shutil

import h5py
import keyed_noise
import numpy as np
import pytest
import tiny_pipeline
import torch
from audited import PICTURES, PROGRAM, SEED, STEPS, Drawer, Found, prepare
from audited import epsilon_world  # noqa: F401
from conftest import assert_refused, run, run_ok
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def detect(world, model, out, *more):
    command = world.command("detect", out, "--first-steps", 1, *more)
    command[command.index("--model") + 1] = model
    return run(*command)


def first_magnitudes(world, model, out, *more):
    result = detect(world, model, out, *more)
    assert result.returncode == 0, result.stderr
    return [Found(out).rows[f"prompts/0/{picture}"]["magnitude"][0] for picture in range(PICTURES)]


def expected(world, unet=None):
    drawer = Drawer(world)
    if unet is not None:
        drawer.unet = unet.eval()
    return pytest.approx([drawer.magnitudes(0, picture)[0] for picture in range(PICTURES)], rel=1e-5)


def other_weights(world, factor):
    unet = UNet2DConditionModel.from_pretrained(world.pipeline / "unet")
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name:
                weight.mul_(factor)
    return unet


@pytest.fixture(scope="module")
def checkpoint(epsilon_world, tmp_path_factory):
    """Laid out as one of memsieve-train."""
    folder = tmp_path_factory.mktemp("run") / "step-000004"
    shutil.copytree(epsilon_world.pipeline / "unet", folder / "unet")
    shutil.copytree(epsilon_world.pipeline / "scheduler", folder / "scheduler")
    other_weights(epsilon_world, 0.5).save_pretrained(folder / "unet_ema")
    return folder


def test_a_unet_folder_with_the_scheduler_named(epsilon_world, tmp_path):
    alone = tmp_path / "alone" / "somewhere"
    shutil.copytree(epsilon_world.pipeline / "unet", alone)
    assert_refused(detect(epsilon_world, alone, tmp_path / "a"), 2, "scheduler_config.json", "--scheduler")
    found = first_magnitudes(epsilon_world, alone, tmp_path / "b", "--scheduler", epsilon_world.pipeline / "scheduler")
    assert found == expected(epsilon_world)


def test_a_checkpoint_and_its_averaged_weights(epsilon_world, checkpoint, tmp_path):
    assert first_magnitudes(epsilon_world, checkpoint, tmp_path / "a") == expected(epsilon_world)
    averaged = expected(epsilon_world, other_weights(epsilon_world, 0.5))
    assert averaged != expected(epsilon_world).expected
    assert first_magnitudes(epsilon_world, checkpoint, tmp_path / "b", "--ema") == averaged


def test_the_same_folder_is_not_continued_with_another_model(epsilon_world, checkpoint, tmp_path):
    first_magnitudes(epsilon_world, checkpoint, tmp_path / "a")
    assert_refused(detect(epsilon_world, checkpoint, tmp_path / "a", "--ema"), 2, "measurements.jsonl", "another model")


def adapted_unet(world):
    unet = UNet2DConditionModel.from_pretrained(world.pipeline / "unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v", "to_out.0"])
    unet.add_adapter(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.5)
    return unet, config


def save_adapters(folder, unet, config):
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet),
                                              unet_lora_adapter_metadata=config.to_dict())


def test_the_same_folder_is_not_continued_with_adapters_of_another_scale(epsilon_world, tmp_path):
    unet, config = adapted_unet(epsilon_world)
    for alpha in (2, 4):
        config.lora_alpha = alpha
        save_adapters(tmp_path / str(alpha), unet, config)
    first_magnitudes(epsilon_world, epsilon_world.pipeline, tmp_path / "out", "--lora", tmp_path / "2")
    assert_refused(detect(epsilon_world, epsilon_world.pipeline, tmp_path / "out", "--lora", tmp_path / "4"), 2, "measurements.jsonl",
                   "another model")


def test_adapters_of_peft(epsilon_world, tmp_path):
    unet, config = adapted_unet(epsilon_world)
    folder = tmp_path / "step-000008" / "lora"
    save_adapters(folder, unet, config)
    adapted = expected(epsilon_world, unet)
    for number, lora in enumerate((folder, folder / "pytorch_lora_weights.safetensors", folder.parent)):
        found = first_magnitudes(epsilon_world, epsilon_world.pipeline, tmp_path / str(number), "--lora", lora)
        assert found == adapted
    # What is averaged are then the adapters: the model may be the folder of one, and plain adapters do not stand in.
    alone = ["--scheduler", epsilon_world.pipeline / "scheduler", "--ema"]
    assert_refused(detect(epsilon_world, epsilon_world.pipeline / "unet", tmp_path / "z", *alone, "--lora", folder.parent), 2, "ema",
                   "no averaged adapters", "lora_ema")
    shutil.copytree(folder, folder.parent / "lora_ema")
    found = first_magnitudes(epsilon_world, epsilon_world.pipeline / "unet", tmp_path / "z", *alone, "--lora", folder.parent)
    assert found == adapted
    (folder.parent / "state.json").write_text(json.dumps({"base": "0123456789abcdef"}))
    assert_refused(detect(epsilon_world, epsilon_world.pipeline, tmp_path / "x", "--lora", folder), 2,
                   "is not the model that the adapters")
    (folder.parent / "state.json").unlink()
    os.mkfifo(folder.parent / "state.json")
    assert_refused(detect(epsilon_world, epsilon_world.pipeline, tmp_path / "x", "--lora", folder), 3,
                   "state.json: is not a file but a pipe")
    assert_refused(detect(epsilon_world, folder.parent, tmp_path / "y"), 2, "holds adapters alone", "--lora")


def test_weights_with_a_nan_are_refused(epsilon_world, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(epsilon_world.pipeline / "unet")
    with torch.no_grad():
        unet.conv_out.weight[0, 0, 0, 0] = torch.nan
    unet.save_pretrained(tmp_path / "broken" / "unet")
    shutil.copytree(epsilon_world.pipeline / "scheduler", tmp_path / "broken" / "scheduler")
    assert_refused(detect(epsilon_world, tmp_path / "broken", tmp_path / "out"), 3, "conv_out.weight", "NaN")


def test_a_model_like_sdxl_with_pooled_text_and_time_ids(tmp_path):
    pipeline = tmp_path / "xl"
    tiny_pipeline.stable_diffusion_xl(pipeline)
    prompts = prepare(pipeline, ["a cat", "dog on the moon"], tmp_path / "prompts.h5")
    run_ok(PROGRAM, "detect", "--model", pipeline, "--prompts", prompts, "--out", tmp_path / "out", "--device", "cpu", "--seed", SEED,
           "--num-images-per-prompt", 1, "--num-inference-steps", STEPS, "--first-steps", 1)
    found = Found(tmp_path / "out")
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    scheduler = DDIMScheduler.from_pretrained(pipeline / "scheduler")
    scheduler.set_timesteps(STEPS)
    with h5py.File(prompts) as file:
        stored = {name: torch.tensor(file[name][:].astype(np.float32))
                  for name in ("text", "null_text", "pooled", "null_pooled", "time_ids")}
    for prompt in range(2):
        noise = torch.tensor(keyed_noise.normal(SEED, keyed_noise.DRAW_NOISE, [(prompt, 0)], (4, 8, 8)))
        added = {"text_embeds": torch.stack([stored["null_pooled"], stored["pooled"][prompt]]),
                 "time_ids": stored["time_ids"][[prompt, prompt]]}
        with torch.no_grad():
            null, captioned = unet(torch.cat([noise, noise]), scheduler.timesteps[0], torch.stack(
                [stored["null_text"], stored["text"][prompt]]), added_cond_kwargs=added).sample
        assert found.rows[f"prompts/{prompt}/0"]["magnitude"] == pytest.approx([(captioned - null).norm().item()], rel=1e-5)


def test_prompts_of_another_size_than_the_model_s_are_told(epsilon_world, tmp_path):
    large = prepare(epsilon_world.pipeline, ["a cat"], tmp_path / "large.h5", "--resolution", 32)
    result = detect(epsilon_world, epsilon_world.pipeline, tmp_path / "out", "--set", f"prompts={large}")
    assert result.returncode == 0 and "16 x 16" in result.stderr and "8 x 8" in result.stderr
    assert "made for" not in detect(epsilon_world, epsilon_world.pipeline, tmp_path / "same").stderr
