"""Our VAE decoder against diffusers' AutoencoderKL."""

import json

import pytest
import torch
from conftest import BUILD, assert_refused, run, run_ok
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

PROGRAM = BUILD / "diffusion" / "memsieve-unet"

SMALL = dict(
    block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8, layers_per_block=1, sample_size=16,
)
CASES = {
    "small": (SMALL, (5, 6)),
    "sd_like": (dict(SMALL, block_out_channels=(8, 16, 16, 24), layers_per_block=2,
                     down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4), (4, 3)),
    "sdxl_like": (dict(SMALL, scaling_factor=0.13025, force_upcast=True), (3, 3)),
    "shifted_and_bare": (dict(SMALL, latent_channels=6, scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False,
                              use_post_quant_conv=False, mid_block_add_attention=False), (2, 7)),
    "one_level": (dict(SMALL, block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",),
                       up_block_types=("UpDecoderBlock2D",)), (4, 4)),
}
torch.set_num_threads(1)


def make(folder, config, size, rows=2):
    torch.manual_seed(3)
    model = AutoencoderKL(**config).eval()
    with torch.no_grad():  # norms start as the identity, which would hide one that is left out
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / "vae")
    latents = torch.randn(rows, model.config.latent_channels, *size)
    save_file({"latents": latents}, folder / "in.safetensors")
    return model, latents


def decode(folder):
    run_ok(PROGRAM, folder / "vae", "--vae", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors")
    return load_file(folder / "out.safetensors")["images"]


def expected(model, latents):
    with torch.no_grad():
        return model.decode(latents / model.config.scaling_factor + (model.config.shift_factor or 0)).sample


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_decoded_pictures(case, tmp_path):
    model, latents = make(tmp_path, *CASES[case])
    assert_close(decode(tmp_path), expected(model, latents))


def test_older_names_of_attention_weights(tmp_path):
    model, latents = make(tmp_path, *CASES["small"])
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for present, before in old.items():
        for key in [key for key in tensors if f"attentions.0.{present}." in key]:
            tensors[key.replace(f".{present}.", f".{before}.")] = tensors.pop(key)
    save_file(tensors, path)
    assert any("decoder.mid_block.attentions.0.query.weight" == key for key in tensors)
    assert_close(decode(tmp_path), expected(model, latents))
    tensors["decoder.mid_block.attentions.0.to_q.bias"] = torch.zeros(32)
    save_file(tensors, path)
    assert_refused(refusal(tmp_path), 3, str(path), "attentions.0.to_q.bias", "present name")


def test_half_precision_shards_and_variant(tmp_path):
    make(tmp_path, *CASES["small"])
    half = AutoencoderKL.from_pretrained(tmp_path / "vae", torch_dtype=torch.float16)
    latents = load_file(tmp_path / "in.safetensors")["latents"]
    theirs = expected(half.float(), latents)
    half = half.half()
    for options in ({"max_shard_size": sum(p.numel() for p in half.parameters())}, {"variant": "fp16"}):
        for file in (tmp_path / "vae").iterdir():
            file.unlink()
        half.save_pretrained(tmp_path / "vae", **options)
        assert not (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").exists()
        assert_close(decode(tmp_path), theirs)


def refusal(folder):
    return run(PROGRAM, folder / "vae", "--vae", "--inputs", folder / "in.safetensors", "--out", folder / "no")


@pytest.mark.parametrize("key, value", [
    ("act_fn", "gelu"), ("latents_mean", [0.0] * 4), ("surprise", 1), ("_class_name", "AutoencoderTiny"),
    ("up_block_types", ["UpDecoderBlock2D"]), ("up_block_types", ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]),
    ("norm_num_groups", 5), ("scaling_factor", 0), ("scaling_factor", None), ("layers_per_block", 0),
])
def test_config_that_is_not_supported(tmp_path, key, value):
    make(tmp_path, *CASES["small"])
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    named = "block_out_channels" if key == "norm_num_groups" else key
    assert_refused(refusal(tmp_path), 2, str(path), named)


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.pop("decoder.conv_in.weight"), ["decoder.conv_in.weight", "missing"]),
    (lambda t: t.update({"decoder.more": torch.zeros(1)}), ["decoder.more", "no place"]),
    (lambda t: t.update({"post_quant_conv.bias": torch.zeros(5)}), ["post_quant_conv.bias", "[5]", "[4]"]),
])
def test_weights_that_do_not_fit(tmp_path, damage, words):
    make(tmp_path, *CASES["small"])
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    assert_refused(refusal(tmp_path), 3, str(path), *words)


def test_inputs_that_do_not_fit(tmp_path):
    make(tmp_path, *CASES["small"])
    save_file({"latents": torch.zeros(2, 3, 4, 4)}, tmp_path / "in.safetensors")
    assert_refused(refusal(tmp_path), 3, "[2, 3, 4, 4]", "[B, 4, H, W]")
    save_file({"other": torch.zeros(2)}, tmp_path / "in.safetensors")
    assert_refused(refusal(tmp_path), 3, "in.safetensors", "latents")
