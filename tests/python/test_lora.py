"""LoRA against peft and diffusers: names, files both ways, predictions and gradients; then whole runs of the trainer."""

import json

import pytest
import tiny
import torch
from conftest import BUILD, assert_refused, on_ranks, run, run_ok
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

UNET_PROGRAM = BUILD / "diffusion" / "memsieve-unet"
DEFAULT = ["to_q", "to_k", "to_v", "to_out.0"]
WIDE = [*DEFAULT, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "conv1", "conv_shortcut",
        "downsamplers.0.conv", "upsamplers.0.conv", "conv_in"]
SMALL = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, attention_head_dim=2,
             norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
LINEAR = {"use_linear_projection": True}
XL = LINEAR | dict(transformer_layers_per_block=(2, 1), addition_embed_type="text_time", addition_time_embed_dim=4,
                   projection_class_embeddings_input_dim=34)
# target modules, rank, alpha, what the UNet has besides SMALL
CASES = {"default": (DEFAULT, 4, 4, {}), "alpha": (DEFAULT, 3, 7.5, LINEAR), "wide": (WIDE, 2, 5, {}),
         "wide_linear": (WIDE, 2, 2, LINEAR), "xl": (WIDE, 2, 3, XL)}

torch.set_num_threads(1)


def difference(ours, theirs):
    """Norm of the difference over the norm of theirs."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def inputs_of(unet, rows=2):
    generator = torch.Generator().manual_seed(7)
    inputs = {"sample": torch.randn(rows, unet.config.in_channels, 8, 8, generator=generator),
              "timestep": torch.tensor([3, 700])[:rows],
              "encoder_hidden_states": torch.randn(rows, 5, unet.config.cross_attention_dim, generator=generator)}
    if unet.config.addition_embed_type:
        inputs |= {"text_embeds": torch.randn(rows, 10, generator=generator),
                   "time_ids": torch.tensor([[64.0, 48, 0, 8, 64, 64]] * rows)}
    return inputs


def answer(unet, inputs):
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    return unet(*(inputs[name] for name in ("sample", "timestep", "encoder_hidden_states")), added_cond_kwargs=added).sample


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
    targets, rank, alpha, more = CASES[case]
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL | more)
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
    theirs = answer(unet, inputs)
    assert difference(ours["prediction"], theirs) < 1e-5
    theirs.square().mean().backward()
    trained = {name.replace(".default", ""): p for name, p in unet.named_parameters() if p.requires_grad}
    assert {key.removeprefix("grad.") for key in ours if key.startswith("grad.")} == set(trained)
    largest = max(p.grad.norm().item() for p in trained.values())
    for name, parameter in trained.items():
        error = (ours["grad." + name].double() - parameter.grad.double()).norm().item()
        assert error < max(1e-4 * parameter.grad.norm().item(), 1e-7 * largest), name


@pytest.mark.parametrize("named_by", ["peft", "training scripts"])
def test_without_an_alpha_in_the_file_it_is_the_rank(tmp_path, named_by):
    """diffusers' training scripts convert peft's names to older ones before they save."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL)
    unet.save_pretrained(tmp_path / "unet")
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=DEFAULT))
    filled(unet)
    layers = get_peft_model_state_dict(unet)
    if named_by == "training scripts":
        layers = convert_state_dict_to_diffusers(layers)
        assert any(name.endswith(".lora.down.weight") for name in layers)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    inputs = inputs_of(unet)
    save_file(inputs, tmp_path / "in.safetensors")
    run_ok(UNET_PROGRAM, tmp_path / "unet", "--inputs", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors",
           "--lora", tmp_path / "pytorch_lora_weights.safetensors")
    with torch.no_grad():
        assert difference(load_file(tmp_path / "out.safetensors")["prediction"], unet(**inputs).sample) < 1e-5


@pytest.fixture
def peft_s_own(tmp_path):
    """(folder, PeftModel, path of adapter_model.safetensors) of a small UNet in folder/unet, as peft saves it."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**SMALL)
    unet.save_pretrained(tmp_path / "unet")
    model = get_peft_model(unet, LoraConfig(r=2, lora_alpha=5, target_modules=DEFAULT))
    filled(model)
    model.save_pretrained(tmp_path / "adapter")
    save_file(inputs_of(unet), tmp_path / "in.safetensors")
    return tmp_path, model, tmp_path / "adapter" / "adapter_model.safetensors"


def test_the_file_that_peft_itself_saves(peft_s_own):
    folder, model, path = peft_s_own
    run_ok(UNET_PROGRAM, folder / "unet", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors", "--lora", path)
    with torch.no_grad():
        theirs = model(**load_file(folder / "in.safetensors")).sample
        with model.disable_adapter():
            assert difference(theirs, model(**load_file(folder / "in.safetensors")).sample) > 1e-3
    assert difference(load_file(folder / "out.safetensors")["prediction"], theirs) < 1e-5


@pytest.mark.parametrize("key, value", [("use_dora", True), ("rank_pattern", {"to_q": 3}), ("init_lora_weights", "pissa")])
def test_a_config_of_peft_that_asks_for_something_else(peft_s_own, key, value):
    folder, _, path = peft_s_own
    config = path.with_name("adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    result = run(UNET_PROGRAM, folder / "unet", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors", "--lora", path)
    assert_refused(result, 3, str(config), key, "not supported")


def test_peft_s_own_file_needs_its_config(peft_s_own):
    folder, _, path = peft_s_own
    path.with_name("adapter_config.json").unlink()
    refused(folder, path, ["adapter_config.json", "missing", "side by side"])


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
    (lambda t: t.update({"text_encoder.x.lora_A.weight": torch.zeros(2, 16)}), ["text_encoder.x", "unet alone", "unet_lora_layers"]),
    (lambda t: t.update({"text_encoder_2.x.lora_A.weight": torch.zeros(2, 16)}), ["text_encoder_2.x", "unet alone"]),
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
                                        ("unet.lora_alpha", "2"), ("unet.alpha_pattern", {"to_q": 3}), ("lora_bias", True),
                                        ("unet.init_lora_weights", "pissa_niter_4"), ("unet.init_lora_weights", "olora")])
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


# ---- whole runs ----------------------------------------------------------------------------------------------------------

TRAIN = BUILD / "trainer" / "memsieve-train"
ADAPTER = "lora/pytorch_lora_weights.safetensors"
LORA = ("lora.rank=3", "lora.alpha=7", "learning_rate=0.02", "max_train_steps=3")


def base_unet(folder, seed=1):
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**{key: value for key, value in tiny.UNET.items() if not key.startswith("_")})
    unet.save_pretrained(folder)
    return unet


def settings(*words):
    return [word for setting in words for word in ("--set", setting)]


@pytest.fixture
def world(tmp_path):
    """A run with LoRA on a UNet of diffusers' in tmp_path/base."""
    config = tiny.write_run(tmp_path, latents=True)
    config.write_text(config.read_text().replace("config: unet.json", "pretrained: base"))
    base_unet(tmp_path / "base")
    return tmp_path


def train(folder, *words, ranks=1, more=()):
    command = [TRAIN, "--config", "run.yaml", *settings(*words), *more]
    result = on_ranks(ranks, *command, cwd=folder) if ranks > 1 else run(*command, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def checkpoint(folder, run_name, step):
    return folder / run_name / "checkpoints" / f"step-{step:06d}"


def pipeline_of(unet):
    text = CLIPTextModel(CLIPTextConfig(vocab_size=10, hidden_size=6, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=2, max_position_embeddings=5))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    return StableDiffusionPipeline(vae, text, None, unet, DDIMScheduler(), None, None, requires_safety_checker=False)


def answer_of_ours(folder, inputs, *more):
    save_file(inputs, folder / "in.safetensors")
    run_ok(UNET_PROGRAM, folder / "base", "--inputs", folder / "in.safetensors", "--out", folder / "out.safetensors", *more)
    return load_file(folder / "out.safetensors")["prediction"]


def tiny_inputs():
    generator = torch.Generator().manual_seed(7)
    return {"sample": torch.randn(2, 12, 4, 4, generator=generator), "timestep": torch.tensor([3, 700]),
            "encoder_hidden_states": torch.randn(2, 5, 6, generator=generator)}


@pytest.mark.parametrize("targets", ["[to_q, to_k, to_v, to_out.0]", "[attn1.to_q, proj_in, ff.net.0.proj, conv2]"])
def test_a_trained_adapter_opens_in_diffusers(world, targets):
    said = train(world, *LORA, f"lora.target_modules={targets}", "use_ema=true")
    assert "trained parameters (LoRA of rank 3 on " in said
    for name in ("lora", "lora_ema"):
        folder = checkpoint(world, "run", 3) / name
        ours = answer_of_ours(world, tiny_inputs(), "--lora", folder / "pytorch_lora_weights.safetensors")
        pipeline = pipeline_of(UNet2DConditionModel.from_pretrained(world / "base"))
        with torch.no_grad():
            before = pipeline.unet(**tiny_inputs()).sample
            pipeline.load_lora_weights(folder)
            after = pipeline.unet(**tiny_inputs()).sample
        assert pipeline.unet.peft_config["default_0"].lora_alpha == 7
        assert difference(ours, after) < 1e-5
        assert difference(before, after) > 1e-4
        # The other way in: the file as a single adapter of a UNet.
        unet = UNet2DConditionModel.from_pretrained(world / "base")
        unet.load_lora_adapter(folder, prefix="unet", use_safetensors=True)
        with torch.no_grad():
            assert torch.equal(unet(**tiny_inputs()).sample, after)


def test_the_first_step_is_that_of_the_base_and_only_adapters_are_kept(world):
    for name, words in (("with", LORA), ("without", ("max_train_steps=3",))):
        train(world, *words, f"output_dir={name}", "filter=off")
    first = [json.loads((world / name / "metrics.jsonl").read_text().splitlines()[0])["loss"] for name in ("with", "without")]
    assert first[0] == first[1]
    saved = checkpoint(world, "with", 3)
    assert {path.name for path in saved.iterdir()} == {"lora", "scheduler", "optimizer.safetensors", "state.json"}
    adapter, moments = load_file(saved / ADAPTER), load_file(saved / "optimizer.safetensors")
    assert set(moments) == {f"exp_avg{sq}.{name.removeprefix('unet.')}" for name in adapter for sq in ("", "_sq")} | {"updates"}


def test_an_adapter_of_diffusers_is_a_start(world):
    unet = UNet2DConditionModel.from_pretrained(world / "base")
    config = LoraConfig(r=3, lora_alpha=7, target_modules=DEFAULT, init_lora_weights="gaussian")
    unet.add_adapter(config)
    filled(unet)
    start = save_as_diffusers(unet, config, world)
    train(world, *LORA, f"lora.pretrained={start}", "learning_rate=0")
    after = load_file(checkpoint(world, "run", 3) / ADAPTER)
    before = load_file(start)
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_resuming_on_two_ranks_equals_an_uninterrupted_run_with_the_filter_on(world):
    ranks = 2
    words = ["lora.rank=2", "learning_rate=0.01", "use_ema=true", "sieve.filters.magnitude.scale=linear",
             "sieve.standardise.by=none", "sieve.evidence.kind=visit", "sieve.threshold.kind=fixed", "sieve.threshold.drop=0.65",
             "sieve.reference.kind=none", "sieve.probe.kind=every", "sieve.action.warmup_steps=0"]
    train(world, *words, "max_train_steps=6", "output_dir=whole", ranks=ranks)
    train(world, *words, "max_train_steps=3", "output_dir=parts", ranks=ranks)
    train(world, *words, "max_train_steps=6", "output_dir=parts", ranks=ranks, more=("--resume-from", "latest"))
    files = [ADAPTER, ADAPTER.replace("lora/", "lora_ema/"), "optimizer.safetensors", "sieve.safetensors"]
    for file in files:
        whole, parts = (load_file(checkpoint(world, name, 6) / file) for name in ("whole", "parts"))
        assert set(whole) == set(parts)
        for name in whole:
            assert torch.allclose(whole[name].double(), parts[name].double(), rtol=0, atol=0, equal_nan=True), (file, name)
    lines = [json.loads(line) for line in (world / "whole/metrics.jsonl").read_text().splitlines()]
    dropped = sum(line["dropped"] for line in lines)
    assert 0 < dropped < sum(line["rows"] for line in lines)


def test_what_starts_from_an_adapter_is_referred_to_the_base_below_it(world):
    """reference: start_model asks the UNet without adapters, so an adapter to start from changes nothing in it."""
    unet = UNet2DConditionModel.from_pretrained(world / "base")
    config = LoraConfig(r=3, lora_alpha=7, target_modules=DEFAULT)
    unet.add_adapter(config)
    filled(unet)
    start = save_as_diffusers(unet, config, world)
    states = {}
    for name, words in (("plain", ()), ("started", (f"lora.pretrained={start}",))):
        train(world, *LORA, *words, f"output_dir={name}", "sieve.reference.kind=start_model", "max_train_steps=1")
        states[name] = load_file(checkpoint(world, name, 1) / "sieve.safetensors")
    kept = [name for name in states["plain"] if "reference" in name]
    assert kept
    for name in kept:
        assert torch.equal(states["plain"][name].nan_to_num(), states["started"][name].nan_to_num()), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_float32_adapters(world, precision):
    train(world, *LORA, f"mixed_precision={precision}", "filter=off")
    adapter = load_file(checkpoint(world, "run", 3) / ADAPTER)
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())
    assert all(tensor.isfinite().all() and tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_gradient_checkpointing_trains_the_same_adapters(world):
    for name, words in (("with", ["gradient_checkpointing=true"]), ("without", [])):
        train(world, *LORA, *words, "filter=off", "adam_epsilon=0.01", f"output_dir={name}")
    kept, computed_again = (load_file(checkpoint(world, name, 3) / ADAPTER) for name in ("without", "with"))
    for name in kept:
        assert torch.allclose(kept[name], computed_again[name], atol=1e-5), name


def refuses(world, code, words, *given, more=()):
    assert_refused(run(TRAIN, "--config", "run.yaml", *settings(*given), *more, cwd=world), code, *words)


def test_mistakes_are_named(world):
    refuses(world, 2, ["run.yaml", "lora.target_modules", "'to_x'", "to_out.0", "conv_shortcut"],
            "lora.target_modules=[to_q, to_x]")
    refuses(world, 2, ["lora.rank", "0"], "lora.rank=0")
    refuses(world, 2, ["lora.target_modules", "empty"], "lora.target_modules=[]")
    refuses(world, 3, ["nowhere.safetensors"], "lora.pretrained=nowhere.safetensors")
    train(world, *LORA, "lora.alpha=2")
    start = checkpoint(world, "run", 3) / ADAPTER
    refuses(world, 3, [str(start), "alpha is 2", "lora.alpha"], "output_dir=b", *LORA, f"lora.pretrained={start}")
    refuses(world, 3, [str(start), "[3, 8]", "[5, 8]"], "output_dir=b", "lora.rank=5", "lora.alpha=2", f"lora.pretrained={start}")


def test_a_checkpoint_is_resumed_on_its_own_base_and_with_lora(world):
    train(world, *LORA)
    base_unet(world / "base", seed=2)
    more = ("--resume-from", "latest")
    refuses(world, 2, ["model.pretrained", "is not the UNet that the adapters", "step-000003"], *LORA, "max_train_steps=4", more=more)
    base_unet(world / "base", seed=1)
    refuses(world, 2, ["lora", "lora.pretrained=", ADAPTER], "learning_rate=0.02", "max_train_steps=4", more=more)
    train(world, *LORA, "max_train_steps=4", more=more)
