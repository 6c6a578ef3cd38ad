"""Which model memsieve-audit loads: UNet folder, pipeline, checkpoint, averaged weights, adapters."""
import json
import shutil

import pytest
import torch
from audited import PICTURES, Drawer, Found
from audited import epsilon_world  # noqa: F401
from conftest import assert_refused, run
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
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


def test_adapters_of_peft(epsilon_world, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(epsilon_world.pipeline / "unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v", "to_out.0"])
    unet.add_adapter(config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.5)
    folder = tmp_path / "step-000008" / "lora"
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet),
                                              unet_lora_adapter_metadata=config.to_dict())
    adapted = expected(epsilon_world, unet)
    for number, lora in enumerate((folder, folder / "pytorch_lora_weights.safetensors", folder.parent)):
        found = first_magnitudes(epsilon_world, epsilon_world.pipeline, tmp_path / str(number), "--lora", lora)
        assert found == adapted
    (folder.parent / "state.json").write_text(json.dumps({"base": "0123456789abcdef"}))
    assert_refused(detect(epsilon_world, epsilon_world.pipeline, tmp_path / "x", "--lora", folder), 2,
                   "is not the model that the adapters")
    assert_refused(detect(epsilon_world, folder.parent, tmp_path / "y"), 2, "holds adapters alone", "--lora")


def test_weights_with_a_nan_are_refused(epsilon_world, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(epsilon_world.pipeline / "unet")
    with torch.no_grad():
        unet.conv_out.weight[0, 0, 0, 0] = torch.nan
    unet.save_pretrained(tmp_path / "broken" / "unet")
    shutil.copytree(epsilon_world.pipeline / "scheduler", tmp_path / "broken" / "scheduler")
    assert_refused(detect(epsilon_world, tmp_path / "broken", tmp_path / "out"), 3, "conv_out.weight", "NaN")
