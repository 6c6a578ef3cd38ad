"""Our UNet against diffusers' own UNet2DConditionModel: names, predictions, gradients, folders both ways."""

import json
import os
import subprocess

import pytest
import torch
from conftest import BUILD, assert_refused
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sd_configs import FAMILIES

PROGRAM = BUILD / "diffusion" / "memsieve-unet"

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

SDXL_LIKE = dict(
    sample_size=16, block_out_channels=(16, 32, 48), down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, UP), transformer_layers_per_block=(1, 2, 4), attention_head_dim=(1, 2, 6),
    cross_attention_dim=40, use_linear_projection=True, norm_num_groups=8, addition_embed_type="text_time",
    addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8,
)
REFINER_LIKE = dict(
    SDXL_LIKE, block_out_channels=(16, 32, 48, 48), down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
    up_block_types=(UP, CROSS_UP, CROSS_UP, UP), transformer_layers_per_block=2, attention_head_dim=(1, 2, 3, 3),
    projection_class_embeddings_input_dim=24 + 5 * 8,
)
NO_ATTENTION_BUT_MIDDLE = dict(
    DEEP, down_block_types=(DOWN, DOWN), up_block_types=(UP, UP), transformer_layers_per_block=2,
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
    "sdxl_like": (SDXL_LIKE, (16, 16), 7),
    "sdxl_like_odd_size": (SDXL_LIKE, (13, 10), 3),
    "refiner_like": (REFINER_LIKE, (8, 16), 5),
    "no_attention_but_middle": (NO_ATTENTION_BUT_MIDDLE, (6, 7), 5),
}


torch.set_num_threads(1)


def difference(ours, theirs):
    """Norm of the difference over the norm of theirs."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def run(*arguments):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment)


def make_inputs(model, size, tokens, rows=3):
    c = model.config
    inputs = {
        "sample": torch.randn(rows, c.in_channels, *size),
        "timestep": torch.tensor([0, 341, 999])[:rows],
        "encoder_hidden_states": torch.randn(rows, tokens, c.encoder_hid_dim or c.cross_attention_dim),
    }
    if c.addition_embed_type == "text_time":
        ids = 5 if len(c.block_out_channels) == 4 else 6
        inputs["time_ids"] = torch.randint(0, 1024, (rows, ids)).float()
        pooled = c.projection_class_embeddings_input_dim - ids * c.addition_time_embed_dim
        inputs["text_embeds"] = torch.randn(rows, pooled)
    return inputs


def predict(model, inputs):
    added = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs}
    plain = {key: value for key, value in inputs.items() if key not in added}
    return model(**plain, added_cond_kwargs=added or None).sample


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    config, size, tokens = CASES[request.param]
    torch.manual_seed(len(request.param))
    model = UNet2DConditionModel(**config)
    with torch.no_grad():  # norms start as the identity, which would hide a norm that is left out or swapped
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = make_inputs(model, size, tokens)
    model.save_pretrained(tmp_path / "theirs")
    save_file(inputs, tmp_path / "in.safetensors")
    return model, inputs, tmp_path


def test_prediction_gradients_and_folder(case):
    model, inputs, folder = case
    done = run(folder / "theirs", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors",
               "--gradients", "--save-to", folder / "ours")
    assert done.returncode == 0, done.stderr
    ours = load_file(folder / "out.safetensors")

    theirs = predict(model, inputs)
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
        assert torch.equal(predict(again, inputs), predict(model, inputs))


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
    ("mid_block_type", None), ("norm_num_groups", None), ("in_channels", 2**63), ("in_channels", 65537), ("norm_num_groups", -8),
    ("reverse_transformer_layers_per_block", [[1]]), ("addition_time_embed_dim", 8), ("sample_size", "big"),
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


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(1)
    model = UNet2DConditionModel(**SDXL_LIKE)
    model.save_pretrained(folder / "unet")
    return model, make_inputs(model, (8, 8), 3), folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_as_float32(sdxl, tmp_path, dtype, sharded):
    _, inputs, folder = sdxl
    half = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    size = sum(p.numel() * 2 for p in half.parameters())
    half.save_pretrained(tmp_path / "unet", **({"max_shard_size": size // 2} if sharded else {}))
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists() == sharded
    save_file(inputs, tmp_path / "in.safetensors")
    done = run(tmp_path / "unet", "--inputs", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        theirs = predict(half.float(), inputs)
    assert difference(load_file(tmp_path / "out.safetensors")["prediction"], theirs) < 1e-5


@pytest.mark.parametrize("damage, words", [
    (lambda i: i.pop("text_embeds"), ["text_embeds", "missing"]),
    (lambda i: i.pop("time_ids"), ["time_ids", "missing"]),
    (lambda i: i.update(text_embeds=torch.zeros(3, 19)), ["text_embeds", "[3, 19]", "[3, 20]", "6 time_ids"]),
    (lambda i: i.update(time_ids=torch.zeros(3, 9)), ["text_embeds", "9 time_ids"]),
    (lambda i: i.update(time_ids=torch.zeros(2, 6)), ["time_ids", "[2, 6]", "[3, N]"]),
])
def test_pooled_inputs_that_do_not_fit(sdxl, tmp_path, damage, words):
    _, inputs, folder = sdxl
    inputs = dict(inputs)
    damage(inputs)
    save_file(inputs, tmp_path / "in.safetensors")
    (tmp_path / "unet").symlink_to(folder / "unet")
    error = fails(tmp_path)
    assert all(word in error for word in words), error


@pytest.mark.parametrize("name", ["text_embeds", "time_ids"])
def test_pooled_inputs_of_a_model_that_takes_none(small, name):
    save_file(load_file(small / "in.safetensors") | {name: torch.zeros(1, 6)}, small / "in.safetensors")
    assert name in fails(small)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_of_the_real_families(family, tmp_path):
    """No weights of that size: ours are never written to memory, theirs lie on the meta device."""
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    with subprocess.Popen([PROGRAM, tmp_path, "--shapes"], stdout=subprocess.PIPE, text=True) as program:
        ours = json.load(program.stdout)
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    assert program.returncode == 0
    assert usage.ru_maxrss < 1_000_000  # kB
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(FAMILIES[family])
    assert ours == {name: list(parameter.shape) for name, parameter in theirs.named_parameters()}


def test_arguments(small):
    done = run(small / "unet", "--inputs", small / "in.safetensors")
    assert done.returncode == 2 and "out" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_that_no_machine_holds(small):
    path = small / "unet" / "config.json"
    config = json.loads(path.read_text())
    for kernel, words in ((32001, "memory"), (65535, "parameters")):
        path.write_text(json.dumps(config | {"conv_in_kernel": kernel}))
        assert words in fails(small)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bf16-00001-of-00002.safetensors"])
def test_a_folder_of_another_variant_is_told(tmp_path, name):
    UNet2DConditionModel(**ONE_LEVEL).save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / name)
    save_file({"sample": torch.zeros(1)}, tmp_path / "in.safetensors")
    result = run(tmp_path, "--inputs", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
    assert_refused(result, 3, f"'{name}'", f"variant='{'bf16' if 'bf16' in name else 'non_ema'}'", "save the model again")
