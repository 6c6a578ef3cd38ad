"""LoRA against peft and diffusers: names, files both ways, predictions and gradients; then whole runs of the trainer."""

import json

import pytest
import torch
from conftest import BUILD, assert_refused, run, run_ok
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

UNET_PROGRAM = BUILD / "trainer" / "memsieve-unet"
DEFAULT = ["to_q", "to_k", "to_v", "to_out.0"]
WIDE = [*DEFAULT, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "conv1", "conv_shortcut",
        "downsamplers.0.conv", "upsamplers.0.conv", "conv_in"]
SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
# target modules, rank, alpha, projections stored as Linear
CASES = {"default": (DEFAULT, 4, 4, False), "alpha": (DEFAULT, 3, 7.5, True), "wide": (WIDE, 2, 5, False),
         "wide_linear": (WIDE, 2, 2, True)}

torch.set_num_threads(1)


def difference(ours, theirs):
    """Norm of the difference over the norm of theirs."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def inputs_of(unet, rows=2):
    generator = torch.Generator().manual_seed(7)
    return {"sample": torch.randn(rows, unet.config.in_channels, 8, 8, generator=generator),
            "timestep": torch.tensor([3, 700])[:rows],
            "encoder_hidden_states": torch.randn(rows, 5, unet.config.cross_attention_dim, generator=generator)}


def filled(unet):
    """B starts at zero, which would hide everything but the base: numbers for it."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.2)


def save_as_diffusers(unet, config, folder):
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet),
                                              unet_lora_adapter_metadata=config.to_dict())
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_answers_and_learns_the_same_here(case, tmp_path):
    targets, rank, alpha, linear = CASES[case]
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL, use_linear_projection=linear)
    unet.save_pretrained(tmp_path / "unet")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    unet.add_adapter(config)
    filled(unet)
    adapter = save_as_diffusers(unet, config, tmp_path)
    inputs = inputs_of(unet)
    save_file(inputs, tmp_path / "in.safetensors")
    run_ok(UNET_PROGRAM, tmp_path / "unet", "--inputs", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors",
           "--gradients", "--lora", adapter)
    ours = load_file(tmp_path / "out.safetensors")
    theirs = unet(**inputs).sample
    assert difference(ours["prediction"], theirs) < 1e-5
    theirs.square().mean().backward()
    trained = {name.replace(".default", ""): p for name, p in unet.named_parameters() if p.requires_grad}
    assert {key.removeprefix("grad.") for key in ours if key.startswith("grad.")} == set(trained)
    largest = max(p.grad.norm().item() for p in trained.values())
    for name, parameter in trained.items():
        error = (ours["grad." + name].double() - parameter.grad.double()).norm().item()
        assert error < max(1e-4 * parameter.grad.norm().item(), 1e-7 * largest), name


def test_without_an_alpha_in_the_file_it_is_the_rank(tmp_path):
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL)
    unet.save_pretrained(tmp_path / "unet")
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=DEFAULT))
    filled(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet))
    inputs = inputs_of(unet)
    save_file(inputs, tmp_path / "in.safetensors")
    run_ok(UNET_PROGRAM, tmp_path / "unet", "--inputs", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors",
           "--lora", tmp_path / "pytorch_lora_weights.safetensors")
    with torch.no_grad():
        assert difference(load_file(tmp_path / "out.safetensors")["prediction"], unet(**inputs).sample) < 1e-5


@pytest.fixture
def adapter(tmp_path):
    """(folder, path of a good adapter file) of a small UNet in folder/unet."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL)
    unet.save_pretrained(tmp_path / "unet")
    save_file(inputs_of(unet), tmp_path / "in.safetensors")
    config = LoraConfig(r=2, lora_alpha=2, target_modules=DEFAULT)
    unet.add_adapter(config)
    return tmp_path, save_as_diffusers(unet, config, tmp_path)


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.pop(Q + ".lora_B.weight"), [Q.removeprefix("unet.") + ".lora_B.weight", "missing"]),
    (lambda t: t.update({Q + ".lora_A.weight": torch.zeros(3, 16)}), ["lora_A.weight", "[3, 16]", "[2, 16]"]),
    (lambda t: t.update({"unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 16)}), ["nowhere.to_q", "no such layer"]),
    (lambda t: t.update({"unet.conv_norm_out.lora_A.weight": torch.zeros(2, 16)}), ["conv_norm_out", "no such layer"]),
    (lambda t: t.update({"text_encoder.x.lora_A.weight": torch.zeros(2, 16)}), ["text_encoder.x", "no such layer"]),
    (lambda t: t.update({Q + ".alpha": torch.tensor(3.0)}), [Q + ".alpha", "diffusers' form"]),
    (lambda t: t.update({Q + ".lora_magnitude_vector": torch.zeros(16)}), ["lora_magnitude_vector"]),
    (lambda t: (t.clear(), t.update({Q + ".lora_B.weight": torch.zeros(16, 2)})), ["no lora_A"]),
])
def test_adapter_files_that_do_not_fit(adapter, damage, words):
    folder, path = adapter
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    refused(folder, path, words)


@pytest.mark.parametrize("key, value", [("unet.use_dora", True), ("unet.use_rslora", True), ("unet.lora_alpha", 0),
                                        ("unet.lora_alpha", "2"), ("unet.alpha_pattern", {"to_q": 3}), ("lora_bias", True)])
def test_adapter_headers_that_ask_for_something_else(adapter, key, value):
    folder, path = adapter
    with safe_open(path, "pt") as file:
        header = file.metadata()
    config = json.loads(header["lora_adapter_metadata"]) | {key: value}
    save_file(load_file(path), path, header | {"lora_adapter_metadata": json.dumps(config)})
    refused(folder, path, [key, json.dumps(value, separators=(",", ":"))])


def refused(folder, path, words):
    result = run(UNET_PROGRAM, folder / "unet", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors",
                 "--lora", path)
    assert_refused(result, 3, str(path), *words)
