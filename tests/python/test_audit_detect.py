"""memsieve-audit detect: figures against drawing in Python, ranks, resuming, and what is refused."""
import json
import os
import shutil

import h5py
import numpy as np
import pytest
import torch
from audited import GUIDANCE, NEGATIVES, PICTURES, PROGRAM, PROMPTS, SEED, STEPS, Drawer, Found, damage, prepare
from audited import epsilon_world, world  # noqa: F401
from conftest import assert_refused, on_ranks, run, run_ok
from diffusers import UNet2DConditionModel

import keyed_noise
import tiny_pipeline


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    return world.audit("detect", tmp_path_factory.mktemp("detect") / "out", "--negatives", world.negatives)


def test_the_magnitude_of_every_step_is_that_of_python(world, found):
    drawer = Drawer(world)
    for prompt in range(len(PROMPTS)):
        for picture in range(PICTURES):
            expected = drawer.magnitudes(prompt, picture)
            assert found.rows[f"prompts/{prompt}/{picture}"]["magnitude"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_cosine_is_that_of_python(world, found):
    drawer = Drawer(world)
    t = drawer.scheduler.timesteps[-3]
    first = drawer.scheduler.timesteps[0]
    for prompt in range(len(PROMPTS)):
        with torch.no_grad():
            null, captioned = drawer.predict(drawer.noise(prompt, 0), t, drawer.text[prompt])
        cosine = torch.nn.functional.cosine_similarity(null, captioned - null, dim=1).mean().item()
        row = found.rows[f"prompts/{prompt}/0"]
        assert row["cosine"] == pytest.approx(cosine, abs=1e-5)
        factor = 1.0
        if drawer.scheduler.config.prediction_type == "v_prediction":
            a = drawer.scheduler.alphas_cumprod[first].item()
            factor = a**0.5 / (1 - a)
        assert row["norm"] == pytest.approx(factor * row["magnitude"][0], rel=1e-5)


def test_scores_are_means_and_figures_those_of_pairs(found):
    first = {name: [np.mean([found.rows[f"{name}/{p}/{i}"]["magnitude"][0] for i in range(PICTURES)]) for p in range(count)]
             for name, count in (("prompts", len(PROMPTS)), ("negatives", len(NEGATIVES)))}
    assert [p["magnitude_first"] for p in found.summary["prompts"]] == pytest.approx(first["prompts"], rel=1e-12)
    score = found.summary["scores"]["magnitude_first"]
    pairs = [(p > n) + (p == n) / 2 for p in first["prompts"] for n in first["negatives"]]
    assert score["auc"]["estimate"] == pytest.approx(np.mean(pairs), abs=1e-12)
    for value, prompt in zip(first["prompts"], found.summary["prompts"]):
        as_high = sum(n >= value for n in first["negatives"])
        assert prompt["p_value"]["magnitude_first"] == pytest.approx((1 + as_high) / (1 + len(NEGATIVES)))


def test_pictures_and_a_page_are_there(found):
    for row in found.rows.values():
        assert (row["set"] == "negatives") != ("picture" in row)
        if "picture" in row:
            assert (found.out / row["picture"]).read_bytes().startswith(b"\x89PNG")
    page = (found.out / "page.html").read_text()
    assert all(prompt in page for prompt in PROMPTS) and "<img src=\"data:image/png" in page and "http" not in page


def test_any_number_of_ranks_gives_the_same_file(world, found, tmp_path):
    result = on_ranks(2, *world.command("detect", tmp_path / "out", "--negatives", world.negatives))
    assert result.returncode == 0, result.stderr
    assert Found(tmp_path / "out").text == found.text


def test_a_stopped_audit_goes_on_to_the_same_file(world, found, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lines = found.text.splitlines(keepends=True)
    (out / "measurements.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    again = world.audit("detect", out, "--negatives", world.negatives)
    assert again.text == found.text and again.summary["scores"] == found.summary["scores"]


def test_the_first_step_alone_is_the_same_and_costs_less(world, found, tmp_path):
    short = world.audit("detect", tmp_path / "out", "--first-steps", 1)
    for unit, row in short.rows.items():
        assert row["magnitude"] == pytest.approx(found.rows[unit]["magnitude"][:1], rel=1e-6) and "picture" not in row


def test_another_question_in_the_same_folder_is_refused(world, found, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(found.out, out)
    assert_refused(world.refuse("detect", out, "--negatives", world.negatives, "--set", "guidance_scale=2"), 2,
                   "measurements.jsonl", "guidance_scale", "--out")
    assert_refused(world.refuse("detect", out, "--negatives", world.prompts), 2, "measurements.jsonl", "another negatives")


@pytest.mark.parametrize("value", ["null", '"x"', "[1, null]", "{}"])
def test_a_damaged_number_is_told_by_its_row(world, found, tmp_path, value):
    out = tmp_path / "out"
    shutil.copytree(found.out, out)
    unit, others = damage(out, "magnitude", value)
    refused = world.refuse("detect", out, "--negatives", world.negatives)
    assert refused.returncode == 3 and "json.exception" not in refused.stderr
    assert unit in refused.stderr.splitlines()[-1] and "measured again" in refused.stderr.splitlines()[-1]
    (out / "measurements.jsonl").write_text("".join(others))
    again = world.audit("detect", out, "--negatives", world.negatives)
    assert again.rows == found.rows and again.summary["scores"] == found.summary["scores"]


def test_the_gain_of_a_caption_is_that_of_python(epsilon_world, tmp_path):
    pictures = tmp_path / "pictures.h5"
    latents = np.random.default_rng(0).standard_normal((len(PROMPTS), 4, 8, 8)).astype(np.float16)
    shutil.copy(epsilon_world.prompts, pictures)
    drawer = Drawer(epsilon_world)
    with h5py.File(pictures, "a") as file:
        scale = file["latents"].attrs["scaling_factor"]
        del file["variant_of"], file["variant_bytes"], file["variant_offsets"]
        latents[0] = 0  # a picture may be all zeros, as room is that none was written to
        file["latents"][:len(PROMPTS)] = latents
    draws = 5
    words = [PROGRAM, "detect", "--model", epsilon_world.pipeline, "--prompts", pictures, "--out", tmp_path / "out", "--device",
             "cpu", "--seed", SEED, "--num-images-per-prompt", 1, "--first-steps", 1, "--caption-gain-draws", draws]
    run_ok(*words)
    found = Found(tmp_path / "out")
    for prompt in range(len(PROMPTS)):
        x0 = torch.tensor(latents[prompt].astype(np.float32))[None] * scale
        gains = []
        for draw in range(draws):
            t = torch.tensor([(2 * draw + 1) * 1000 // (2 * draws)])
            noise = drawer.noise(prompt, draw, keyed_noise.CAPTION_GAIN_NOISE)
            with torch.no_grad():
                null, captioned = drawer.predict(drawer.scheduler.add_noise(x0, noise, t), t[0], drawer.text[prompt])
            gains.append(np.log(((null - noise)**2).mean().item()) - np.log(((captioned - noise)**2).mean().item()))
        assert found.rows[f"prompts/{prompt}/gain"]["caption_gain"] == pytest.approx(np.mean(gains), abs=1e-5)
    with h5py.File(pictures, "a") as file:
        file["latents"][1] = latents[2]
    assert_refused(run(*words), 2, "measurements.jsonl", "another picture set")


# ---- refusals --------------------------------------------------------------------------------------------------------------


def test_without_signal_at_the_first_timestep_there_is_no_norm(epsilon_world, tmp_path):
    """For v-prediction the norm has a factor that is 0 there: the score would be the cosine under another name."""
    config = json.loads((epsilon_world.pipeline / "scheduler" / "scheduler_config.json").read_text())
    config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    found = epsilon_world.audit("detect", tmp_path / "out", "--scheduler", tmp_path / "scheduler")
    assert all("cosine" in row and "norm" not in row for row in found.rows.values() if "magnitude" in row)
    said = json.dumps(found.summary)
    assert '"magnitude_first"' in said and '"cosine"' in said and '"norm_and_cosine"' not in said


def test_negatives_of_another_encoder_are_refused(epsilon_world, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(epsilon_world.negatives, other)
    with h5py.File(other, "a") as file:
        file["encoder_bytes"][:] = file["encoder_bytes"][:][::-1]
    assert_refused(epsilon_world.refuse("detect", tmp_path / "out", "--negatives", other), 3, "other.h5", "another text encoder")


def test_a_model_of_another_latent_size_is_refused(epsilon_world, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(epsilon_world.pipeline, folder)
    UNet2DConditionModel.from_config({**tiny_pipeline.unet(8).config, "in_channels": 5, "out_channels": 5}) \
        .save_pretrained(folder / "unet")
    command = epsilon_world.command("detect", tmp_path / "out")
    command[command.index("--model") + 1] = folder
    assert_refused(run(*command), 2, "in_channels is 5", "prompts.h5")


def test_embeddings_with_a_nan_are_refused(epsilon_world, tmp_path):
    broken = tmp_path / "broken.h5"
    shutil.copy(epsilon_world.prompts, broken)
    with h5py.File(broken, "a") as file:
        text = file["text"][:]
        text[1, 2, 3] = np.nan
        file["text"][:] = text
    command = epsilon_world.command("detect", tmp_path / "out")
    command[command.index("--prompts") + 1] = broken
    assert_refused(run(*command), 3, "broken.h5", "/text", "NaN")


def with_change(command, change):
    """The command with another option, in the place of its own one where it has that."""
    command = list(map(str, command))
    for name in {"--model", "--prompts", "--num-inference-steps"} & set(change):
        at = command.index(name)
        del command[at:at + 2]
    return [*command, *change]


@pytest.mark.parametrize("change, code, words", [
    (["--model", "nowhere"], 2, ["nowhere", "no such folder"]),
    (["--prompts", "nowhere.h5"], 3, ["nowhere.h5"]),
    (["--ema"], 2, ["averaged"]),
    (["--lora", "nowhere"], 2, ["nowhere", "no adapters"]),
    (["--num-inference-steps", 5000], 2, ["num_inference_steps", "1000"]),
    (["--gidance-scale", 2], 2, ["gidance-scale", "detect --help"]),
])
def test_what_is_wrong_is_said_in_one_line(epsilon_world, tmp_path, change, code, words):
    assert_refused(run(*with_change(epsilon_world.command("detect", tmp_path / "out"), change)), code, *words)


@pytest.mark.parametrize("name, words, code", [
    ("model/unet/config.json", ["--model", "model"], 2),
    ("model/scheduler/scheduler_config.json", ["--model", "model"], 2),
    ("prompts.h5", ["--prompts", "prompts.h5"], 3),
    ("audit.yaml", ["--config", "audit.yaml"], 2),
])
def test_a_pipe_is_refused_before_it_is_opened(epsilon_world, tmp_path, name, words, code):
    shutil.copytree(epsilon_world.pipeline, tmp_path / "model")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    command = with_change(epsilon_world.command("detect", tmp_path / "out"), words)
    assert_refused(run(*command, cwd=tmp_path, timeout=60), code, f"{name}: is not a file but a pipe")


def test_no_prompts_no_command_no_gpu(epsilon_world, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    from memsieve.commands import prepare_prompts
    words = ["--prompts", empty, "--pipeline", epsilon_world.pipeline, "--resolution", 16, "--device", "cpu", "--out",
             tmp_path / "p.h5"]
    assert prepare_prompts.main([str(word) for word in words]) == 3
    assert_refused(run(PROGRAM, "detekt"), 2, "detekt", "detect")
    assert_refused(run(PROGRAM, "detect"), 2, "model")
    if not torch.cuda.is_available():
        command = epsilon_world.command("detect", tmp_path / "out")
        command[command.index("--device") + 1] = "cuda"
        assert_refused(run(*command), 2, "device", "0 visible GPUs")


def test_help_names_every_command_and_option():
    commands = [line.split()[0] for line in run_ok(PROGRAM, "--help").split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert "detect" in commands
    for command in commands:
        said = run_ok(PROGRAM, command, "--help")
        assert "--out" in said and ("--model" in said) == (command != "unauthorised")
        assert ("--guidance-scale" in said) == (command not in ("canary", "unauthorised"))
