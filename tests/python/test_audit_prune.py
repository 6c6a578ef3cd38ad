"""memsieve-audit prune: which weights are zeroed, against Python; the checkpoint; and what the check afterwards says."""
import shutil

import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, PICTURES, PROGRAM, PROMPTS, SEED, STEPS, Drawer, Found, prepare
from audited import epsilon_world, world  # noqa: F401
from conftest import assert_refused, on_ranks, run, run_ok
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

RATIO, CALLS = 0.2, 3
PLAIN = ["a", "some dog", "the moon"]


def command(world, out, *more, prompts=None):
    return [PROGRAM, "prune", "--model", world.pipeline, "--prompts", prompts or world.prompts, "--out", out, "--device", "cpu",
            "--seed", SEED, "--num-images-per-prompt", PICTURES, "--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE,
            "--ratio", RATIO, "--calls", CALLS, "--optimisation-steps", 3, "--optimisation-batch", 2, "--error-draws", 2, *more]


def norms(drawer, texts):
    """{layer: [calls, inputs]}: A of every input of ff.net.2, over both conditions, all pixels and prompts."""
    layers = {name: module for name, module in drawer.unet.named_modules() if name.endswith("ff.net.2")}
    sums, number = {}, [0]

    def hook(name):
        def see(_, inputs):
            h = torch.nn.functional.normalize(inputs[0], dim=-1).reshape(-1, inputs[0].shape[-1])
            sums[name, number[0]] = sums.get((name, number[0]), 0) + h.double().square().sum(0)
        return see

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    for prompt, text in enumerate(texts):
        x = drawer.noise(prompt, 0)
        for number[0], t in enumerate(drawer.scheduler.timesteps[:CALLS]):
            with torch.no_grad():
                null, captioned = drawer.predict(x, t, text)
                x = drawer.scheduler.step(null + GUIDANCE * (captioned - null), t, x, eta=0).prev_sample
    for handle in handles:
        handle.remove()
    return {name: torch.stack([sums[name, call] for call in range(CALLS)]).sqrt() for name in layers}


def masks(drawer, texts, base_texts):
    target, base = norms(drawer, texts), norms(drawer, base_texts)
    weights = dict(drawer.unet.named_parameters())
    found = {}
    for name in target:
        weight = weights[name + ".weight"].detach().double().abs()
        mask = torch.zeros_like(weight, dtype=torch.bool)
        for call in range(CALLS):
            score, other = weight * target[name][call], weight * base[name][call]
            top = torch.zeros_like(mask)
            for i, row in enumerate(score):
                top[i, row.argsort(descending=True)[:int(RATIO * len(row))]] = True
            mask |= top & (score > other)
        found[name + ".weight"] = mask
    return found


def assert_pruned(world, out, expected, unet=None):
    """diffusers opens the checkpoint; exactly the expected weights are zero, all others are what they were, or what they are in
    `unet` up to rounding."""
    pruned, stats = UNet2DConditionModel.from_pretrained(out / "pruned" / "unet", output_loading_info=True)
    assert not stats["missing_keys"] and not stats["unexpected_keys"]
    DDIMScheduler.from_pretrained(out / "pruned" / "scheduler")
    before = dict((unet or UNet2DConditionModel.from_pretrained(world.pipeline / "unet")).named_parameters())
    for name, weight in pruned.named_parameters():
        if name in expected:
            assert torch.equal((weight == 0) & (before[name] != 0), expected[name]), name
        wanted = before[name].masked_fill(expected.get(name, torch.tensor(False)), 0)
        assert torch.allclose(weight, wanted, rtol=1e-5, atol=1e-6) if unet else torch.equal(weight, wanted), name
    return sum(int(mask.sum()) for mask in expected.values())


def test_masks_are_those_of_python(world, tmp_path):
    run_ok(*command(world, tmp_path / "out"))
    drawer = Drawer(world)
    expected = masks(drawer, drawer.text[:len(PROMPTS)], [drawer.null] * len(PROMPTS))
    assert len(expected) == sum(name.endswith("ff.net.2") for name, _ in drawer.unet.named_modules()) > 1
    zeroed = assert_pruned(world, tmp_path / "out", expected)
    summary = Found(tmp_path / "out").summary
    assert zeroed == summary["pruned_weights"] == sum(layer["pruned"] for layer in summary["layers"]) > 0
    assert summary["weights"] == sum(weight.numel() for weight in drawer.unet.parameters())


def test_a_concept_is_compared_with_prompts_without_it_and_ranks_do_not_matter(epsilon_world, tmp_path):
    base = prepare(epsilon_world.pipeline, PLAIN, tmp_path / "base.h5")
    result = on_ranks(2, *command(epsilon_world, tmp_path / "out", "--base", base, "--batch-size", 2))
    assert result.returncode == 0, result.stderr
    with h5py.File(base) as file:
        texts = torch.tensor(file["text"][:].astype(np.float32))
    drawer = Drawer(epsilon_world)
    assert_pruned(epsilon_world, tmp_path / "out", masks(drawer, drawer.text[:len(PROMPTS)], texts))
    assert "before" not in Found(tmp_path / "out").summary


def test_adapters_are_merged_into_the_checkpoint_and_its_merged_weights_are_pruned(epsilon_world, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(epsilon_world.pipeline / "unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v", "to_out.0", "ff.net.2", "conv1"])
    torch.manual_seed(3)
    unet.add_adapter(config)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.3)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet),
                                              unet_lora_adapter_metadata=config.to_dict())
    unet.fuse_lora()
    unet.unload_lora()
    run_ok(*command(epsilon_world, tmp_path / "out", "--lora", tmp_path, "--check=false"))
    drawer = Drawer(epsilon_world)
    plain = masks(drawer, drawer.text[:len(PROMPTS)], [drawer.null] * len(PROMPTS))
    drawer.unet = unet.eval().requires_grad_(False)
    expected = masks(drawer, drawer.text[:len(PROMPTS)], [drawer.null] * len(PROMPTS))
    assert any(not torch.equal(mask, plain[name]) for name, mask in expected.items())
    assert assert_pruned(epsilon_world, tmp_path / "out", expected, unet) == Found(tmp_path / "out").summary["pruned_weights"] > 0


@pytest.fixture(scope="module")
def known(epsilon_world, tmp_path_factory):
    """Prompts whose pictures are what the model draws."""
    path = tmp_path_factory.mktemp("known") / "known.h5"
    shutil.copy(epsilon_world.prompts, path)
    drawer = Drawer(epsilon_world)
    with h5py.File(path, "a") as file:
        scale = float(file["latents"].attrs["scaling_factor"])
        for row in range(len(PROMPTS)):
            drawn = drawer.draw(row, 0, drawer.text[row], lambda _, null, captioned: null + GUIDANCE * (captioned - null))
            file["latents"][row] = (drawn[0] / scale).numpy()
    return path


def test_the_check_follows_by_itself(epsilon_world, known, tmp_path):
    out = tmp_path / "out"
    run_ok(*command(epsilon_world, out, prompts=known))
    summary = Found(out).summary
    assert summary["before"]["copied"]["estimate"] == 1
    for prompt in summary["prompts"]:
        assert prompt["before"]["copies"] >= 1 and prompt["after"]["drawings"] == prompt["recovered"]["drawings"] == PICTURES
    after = Found(out / "after")
    assert after.summary["model"] == str(out / "pruned") and after.summary["with_caption"] == summary["after"]["with_caption"]
    # What the pruned checkpoint draws is what diffusers draws with it.
    drawer = Drawer(epsilon_world)
    drawer.unet = UNet2DConditionModel.from_pretrained(out / "pruned" / "unet").eval()
    with h5py.File(known) as file:
        own = torch.tensor(file["latents"][:].astype(np.float32)) * float(file["latents"].attrs["scaling_factor"])
    bare = tmp_path / "bare"
    shutil.copytree(out / "pruned", bare)
    run_ok(PROGRAM, "check-picture", "--model", bare, "--prompts", known, "--out", tmp_path / "again", "--device", "cpu", "--seed",
           SEED, "--num-images-per-prompt", 1, "--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE,
           "--optimisation-steps", 0)
    again = Found(tmp_path / "again")
    for row in range(len(PROMPTS)):
        drawn = drawer.draw(row, 0, drawer.text[row], lambda _, null, captioned: null + GUIDANCE * (captioned - null))
        expected = np.corrcoef(drawn.numpy().ravel(), own[row].numpy().ravel())[0, 1]
        assert again.rows[f"prompts/{row}/drawings"]["caption"]["similarity"][0] == pytest.approx(expected, abs=1e-4)
    page = (out / "page.html").read_text()
    assert "does not erase" in page and PROMPTS[0] in page and "<img src=\"data:image/png" in page


def test_another_ratio_in_the_same_folder_is_refused(epsilon_world, tmp_path):
    out = tmp_path / "out"
    run_ok(*command(epsilon_world, out, "--check=false"))
    assert_refused(run(*command(epsilon_world, out, "--check=false", "--set", "ratio=0.3")), 2, "measurements.jsonl", "ratio", "--out")


def test_other_rows_in_the_same_folder_are_refused_and_leave_the_result(epsilon_world, tmp_path):
    out = tmp_path / "out"
    run_ok(*command(epsilon_world, out, "--check=false", "--rows", 0))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert_refused(run(*command(epsilon_world, out, "--check=false", "--rows", 0, "--rows", 1)), 2, "measurements.jsonl",
                   "another choice of rows", "--out")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_refusals(epsilon_world, known, tmp_path):
    out = tmp_path / "out"
    base = prepare(epsilon_world.pipeline, PLAIN[:2], tmp_path / "base.h5")
    assert_refused(run(*command(epsilon_world, out, "--base", base)), 3, "base.h5", "2 prompts", "3", "same row")
    none = [str(word) for word in command(epsilon_world, out)]
    none[none.index("--ratio") + 1] = "0.001"
    assert_refused(run(*none), 2, "ratio", "widest layer", "raise it")
    assert_refused(run(*command(epsilon_world, out, "--lora", "adapters")), 2, "lora", "no adapters")
