"""Our UNet against diffusers' own UNet2DConditionModel: names, predictions, gradients, folders both ways."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

PROGRAM = Path(os.environ.get("MEMSIEVE_BUILD", "build/release")) / "trainer" / "memsieve-unet"

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

DEMO = dict(
    sample_size=16, in_channels=12, out_channels=12, block_out_channels=(32, 64, 96),
    down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, CROSS_UP, UP),
    layers_per_block=1, encoder_hid_dim=384, encoder_hid_dim_type="text_proj", cross_attention_dim=128,
    attention_head_dim=4, norm_num_groups=8,
)
SD1_LIKE = dict(
    sample_size=16, block_out_channels=(32, 64, 64, 64), cross_attention_dim=48, attention_head_dim=8,
    down_block_types=(CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP, CROSS_UP, CROSS_UP),
)
SD2_LIKE = dict(
    SD1_LIKE, attention_head_dim=(2, 4, 8, 8), use_linear_projection=True, upcast_attention=True,
)
DEEP = dict(
    sample_size=8, block_out_channels=(16, 32), down_block_types=(DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, UP),
    transformer_layers_per_block=(1, 3), layers_per_block=(1, 2), cross_attention_dim=24, attention_head_dim=(2, 4),
    norm_num_groups=4, norm_eps=1e-6, flip_sin_to_cos=False, freq_shift=1, use_linear_projection=True,
    time_embedding_dim=40, conv_in_kernel=5, conv_out_kernel=1, in_channels=3, out_channels=6,
)
ODD = dict(DEMO, block_out_channels=(16, 24, 40), norm_num_groups=4, attention_head_dim=2)
ONE_LEVEL = dict(
    sample_size=8, block_out_channels=(16,), down_block_types=(CROSS_DOWN,), up_block_types=(CROSS_UP,),
    layers_per_block=1, cross_attention_dim=24, attention_head_dim=2, norm_num_groups=4,
)

CASES = {
    "demo": (DEMO, (16, 16), 12),
    "sd1_like": (SD1_LIKE, (16, 16), 7),
    "sd2_like": (SD2_LIKE, (16, 24), 7),
    "deep": (DEEP, (8, 8), 5),
    "odd_size": (DEMO, (13, 7), 12),
    "odd_channels": (ODD, (9, 18), 3),
    "sd1_like_odd_size": (SD1_LIKE, (11, 10), 1),
    "one_level": (ONE_LEVEL, (5, 8), 4),
}


torch.set_num_threads(1)


def difference(ours, theirs):
    """Norm of the difference over the norm of theirs."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def run(*arguments):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment)


def text_width(model):
    return model.config.encoder_hid_dim or model.config.cross_attention_dim


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    config, size, tokens = CASES[request.param]
    torch.manual_seed(len(request.param))
    model = UNet2DConditionModel(**config)
    with torch.no_grad():  # norms start as the identity, which would hide a norm that is left out or swapped
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = {
        "sample": torch.randn(3, model.config.in_channels, *size),
        "timestep": torch.tensor([0, 341, 999]),
        "encoder_hidden_states": torch.randn(3, tokens, text_width(model)),
    }
    model.save_pretrained(tmp_path / "theirs")
    save_file(inputs, tmp_path / "in.safetensors")
    return model, inputs, tmp_path


def test_prediction_gradients_and_folder(case):
    model, inputs, folder = case
    done = run(folder / "theirs", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors",
               "--gradients", "--save-to", folder / "ours")
    assert done.returncode == 0, done.stderr
    ours = load_file(folder / "out.safetensors")

    theirs = model(**inputs).sample
    assert ours["prediction"].shape == theirs.shape
    assert difference(ours["prediction"], theirs) < 1e-5

    theirs.square().mean().backward()
    names = {name for name, _ in model.named_parameters()}
    assert {key.removeprefix("grad.") for key in ours if key.startswith("grad.")} == names
    largest = max(p.grad.norm().item() for p in model.parameters())
    for name, parameter in model.named_parameters():
        error = (ours["grad." + name].double() - parameter.grad.double()).norm().item()
        # Keys' bias-like directions have gradients that are zero but for rounding: those are held to the largest one.
        assert error < max(1e-4 * parameter.grad.norm().item(), 1e-7 * largest), name

    again, info = UNet2DConditionModel.from_pretrained(folder / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        assert torch.equal(again(**inputs).sample, model(**inputs).sample)


def test_shards(case):
    model, _, folder = case
    size = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(folder / "shards", max_shard_size=size // 3)
    assert len(list((folder / "shards").glob("*-of-*.safetensors"))) > 1
    outputs = []
    for source in ("theirs", "shards"):
        out = folder / f"{source}.safetensors"
        done = run(folder / source, "--inputs", folder / "in.safetensors", "--out", out)
        assert done.returncode == 0, done.stderr
        outputs.append(load_file(out)["prediction"])
    assert torch.equal(*outputs)


@pytest.fixture
def small(tmp_path):
    torch.manual_seed(0)
    model = UNet2DConditionModel(**ONE_LEVEL)
    model.save_pretrained(tmp_path / "unet")
    save_file({"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([5]),
               "encoder_hidden_states": torch.randn(1, 4, 24)}, tmp_path / "in.safetensors")
    return tmp_path


def fails(folder):
    done = run(folder / "unet", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors")
    assert done.returncode in (2, 3) and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (folder / "out.safetensors").exists()
    return done.stderr


@pytest.mark.parametrize("key, value", [
    ("class_embed_type", "timestep"), ("resnet_time_scale_shift", "scale_shift"), ("addition_embed_type", "text"),
    ("mid_block_type", "UNetMidBlock2D"), ("only_cross_attention", True), ("encoder_hid_dim_type", "image_proj"),
    ("dropout", 0.1), ("surprise", 1), ("num_attention_heads", 4), ("attention_head_dim", 3),
])
def test_config_that_is_not_supported(small, key, value):
    path = small / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    error = fails(small)
    assert str(path) in error and key in error and json.dumps(value) in error


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.pop("conv_in.weight"), ["conv_in.weight", "missing"]),
    (lambda t: t.update({"conv_more.weight": torch.zeros(1)}), ["conv_more.weight", "no place"]),
    (lambda t: t.update({"conv_in.bias": torch.zeros(17)}), ["conv_in.bias", "[17]", "[16]"]),
])
def test_weights_that_do_not_fit(small, damage, words):
    path = small / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    error = fails(small)
    assert all(word in error for word in [str(path), *words]), error


def test_half_precision_file_is_read_as_float32(small):
    path = small / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    done = run(small / "unet", "--inputs", small / "in.safetensors", "--out", small / "out.safetensors")
    assert done.returncode == 0, done.stderr
    model = UNet2DConditionModel.from_pretrained(small / "unet", torch_dtype=torch.float32)
    with torch.no_grad():
        theirs = model(**load_file(small / "in.safetensors")).sample
    assert difference(load_file(small / "out.safetensors")["prediction"], theirs) < 1e-5
