"""memsieve-audit benchmark: MemBench's numbers against a second implementation in Python, from the pictures that the program wrote."""
import json
import os
import shutil

import h5py
import keyed_noise
import numpy as np
import pytest
import torch
from audited import PICTURES, PROMPTS, Drawer, Found, damage, prepare
from audited import epsilon_world  # noqa: F401
from benchmarked import COPY, GENERAL, METHODS, PER_PROMPT, PRESETS, SSCD_COPY, Weighed, prepared, save, unit, with_latents
from benchmarked import bench, found, reference  # noqa: F401
from conftest import assert_refused, on_ranks, run
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from memsieve.hdf5_rows import read_texts, store_texts
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image


def test_every_drawing_is_measured_as_in_python(found, reference):
    seen = {name: [] for name in ("similarity", "sscd", "clip", "aesthetic")}
    rows = list(found.rows.values())
    # Two checkpoints, three methods; three different trigger prompts and two general ones.
    assert len(rows) == 2 * 3 * (3 + 2) * PER_PROMPT
    for row in rows:
        caption = (PROMPTS if row["set"] == "prompts" else GENERAL)[row["prompt"]]
        picture = Image.open(found.out / row["picture"])
        for name, value in reference.measures(picture, caption).items():
            # PIL rounds to whole levels after either direction, the VAE in Python now and then otherwise.
            assert row[name] == pytest.approx(value, abs=0.03 if name == "aesthetic" else 5e-3), (row["unit"], name)
            seen[name].append(value)
    for name, values in seen.items():
        assert np.ptp(values) > 0.05, f"{name} is the same for all drawings, so nothing is tested"


def test_it_draws_what_mitigate_draws(found, bench, tmp_path):
    methods = [word for method in METHODS for word in ("--methods", method)]
    command = bench.world.command("mitigate", tmp_path / "out", *methods)
    command[command.index("--prompts") + 1] = bench.prompts
    assert run(*command).returncode == 0
    key = found.summary["models"][0]["key"]
    drawn = Found(tmp_path / "out").rows
    for prompt in range(len(PROMPTS)):
        for method in METHODS:
            for picture in range(PICTURES):
                row = found.rows[f"{key}/{method}/prompts/{prompt}/{picture}"]
                other = drawn[f"{method}/{prompt}/{picture}"]
                assert row["magnitude"] == pytest.approx(other["magnitude"], rel=1e-5)
                assert row["similarity_to_plain"] == pytest.approx(other["similarity_to_plain"], abs=1e-5)


def expected_columns(rows):
    """Of one prompt's drawings."""
    found = {name: np.mean([row[name] for row in rows]) for name in ("clip", "aesthetic", "similarity_to_plain")}
    for name, level in (("similarity", COPY), ("sscd", SSCD_COPY)):
        values = sorted((row[name] for row in rows), reverse=True)
        found |= {f"{name}_max": values[0], f"{name}_top3": np.mean(values[:3]),
                  f"{name}_share": np.mean([value >= level for value in values])}
    return found | {"magnitude_first": np.mean([row["magnitude"][0] for row in rows])}


def test_the_table_has_means_over_prompts_of_maxima_top_three_and_shares(found):
    summary, shares = found.summary, []
    assert [entry["method"] for entry in summary["table"]] == [*METHODS, *METHODS]
    for number, entry in enumerate(summary["table"]):
        key = summary["models"][entry["model"]]["key"]
        for name, count in (("prompts", len(PROMPTS)), ("general", len(GENERAL))):
            of_prompts = []
            for prompt in range(count):
                rows = [found.rows[f"{key}/{entry['method']}/{name}/{prompt}/{i}"] for i in range(PER_PROMPT)]
                of_prompts.append(expected_columns(rows))
                for column, value in of_prompts[-1].items():
                    assert summary[name][prompt][column][number] == pytest.approx(value, rel=1e-9)
            assert entry[name]["prompts"] == count and entry[name]["drawings"] == count * PER_PROMPT
            for column in of_prompts[0]:
                values = [of_prompt[column] for of_prompt in of_prompts]
                interval = entry[name][column]
                assert interval["estimate"] == pytest.approx(np.mean(values))
                if number > 0:
                    before = [prompt[column][0] for prompt in summary[name]]
                    difference = entry[name]["against_first"][column]
                    assert difference["estimate"] == pytest.approx(np.mean(values) - np.mean(before), abs=1e-9)
                # Few prompts: the interval lies within what they have.
                assert min(values) - 1e-9 <= interval["low"] <= interval["estimate"] <= interval["high"] <= max(values) + 1e-9
            shares += [of_prompt["similarity_share"] for of_prompt in of_prompts]
    assert 0 < np.mean(shares) < 1, "choose another COPY: no share is tested"
    assert [prompt["originals"] for prompt in summary["prompts"]] == [2, 1, 1] and summary["originals"] == 4
    page = (found.out / "page.html").read_text()
    assert page.count("<svg role=") == 2 and "other, random_tokens" in page and "sscd_top3" in page


def test_two_ranks_give_the_same_and_what_is_there_is_not_measured_again(found, bench, tmp_path):
    out = tmp_path / "out"
    # One checkpoint first, stopped within a line; then both.
    assert run(*bench.command(out)).returncode == 0
    lines = (out / "measurements.jsonl").read_text().splitlines(keepends=True)
    (out / "measurements.jsonl").write_text("".join(lines[:8]) + lines[8][:20])
    result = on_ranks(2, *bench.command(out, "--compare", bench.other))
    assert result.returncode == 0, result.stderr
    both = Found(out)
    assert both.rows == found.rows
    assert both.summary["table"] == found.summary["table"]
    shutil.rmtree(out / "pictures")
    assert run(*bench.command(out, "--compare", bench.other)).returncode == 0
    assert Found(out).summary == both.summary and not (out / "pictures").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_are_prepared_as_torchvision_does(bench, tmp_path, preset):
    """Wide pictures, each of whose pixels counts."""
    wide = (4, 6, 10)
    prompts = with_latents(bench.prompts, tmp_path / "wide.h5", PROMPTS[:2], wide, seed=4)
    example = Image.new("RGB", (2 * wide[2], 2 * wide[1]))
    height, width = prepared(example, **PRESETS[preset]).shape[2:]
    module = Weighed(height, width)
    command = bench.world.command("benchmark", tmp_path / "out", "--methods", "none", "--aesthetic",
                                  save(module, tmp_path / "weighed.pt", height, width), "--aesthetic-preset", preset)
    command[command.index("--prompts") + 1] = prompts
    assert run(*command).returncode == 0
    rows = Found(tmp_path / "out").rows.values()
    other = Image.Resampling.BICUBIC if PRESETS[preset].get("filter_") is None else Image.Resampling.BILINEAR
    wrong, off = [], []
    for row in rows:
        picture = Image.open(tmp_path / "out" / row["picture"])
        off.append(row["aesthetic"] - float(module(prepared(picture, **PRESETS[preset]))))
        wrong.append(row["aesthetic"] - float(module(prepared(picture, **{**PRESETS[preset], "filter_": other}))))
    # PIL's whole levels between the two directions make a difference, another filter a larger one.
    off, wrong = (np.sqrt(np.mean(np.square(values))) for values in (off, wrong))
    assert off < 0.03 and wrong > 3 * off, (off, wrong)


def test_without_extractors_there_is_no_alignment(bench, tmp_path):
    assert run(*bench.command(tmp_path / "out", extractors={})).returncode == 0
    found = Found(tmp_path / "out")
    assert found.summary["extractors"] == {}
    for entry in found.summary["table"]:
        assert not {"clip", "sscd_max", "aesthetic"} & set(entry["prompts"])
    page = (found.out / "page.html").read_text()
    assert "alignment of drawing and prompt is not" in page and page.count("<svg role=") == 2


def test_adapters_are_compared_upon_the_model(bench, tmp_path):
    """A checkpoint trained with LoRA is named as any other."""
    unet = UNet2DConditionModel.from_pretrained(bench.world.pipeline / "unet")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v", "to_out.0"])
    unet.add_adapter(config)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if ".lora_B." in name:
                weight.normal_()
    StableDiffusionPipeline.save_lora_weights(tmp_path / "adapted" / "lora", unet_lora_layers=get_peft_model_state_dict(unet),
                                              unet_lora_adapter_metadata=config.to_dict())
    result = run(*bench.command(tmp_path / "out", "--compare", tmp_path / "adapted", methods=("none",), extractors={}))
    assert result.returncode == 0, result.stderr
    models = Found(tmp_path / "out").summary["models"]
    assert models[1]["lora"] == str(tmp_path / "adapted") and models[1]["model"] == models[0]["model"]
    assert models[0]["key"] != models[1]["key"]


def first_magnitude(drawer, prompt, picture, text):
    null, captioned = drawer.predict(drawer.noise(prompt, picture, keyed_noise.NEGATIVE_NOISE), drawer.scheduler.timesteps[0], text)
    return (captioned - null).norm().item()


def test_all_methods_draw_general_prompts_from_their_own_noise(bench, tmp_path):
    wordings = tmp_path / "rephrased.jsonl"
    lines = [{"prompt": prompt, "rephrased": [f"{word} {prompt}" for word in ("x", "moon")]} for prompt in (*PROMPTS, *GENERAL)]
    found = {}
    for name, prompts in (("trigger", PROMPTS), ("general", GENERAL)):
        wordings.write_text("".join(json.dumps(line) + "\n" for line in lines if line["prompt"] in prompts))
        found[name] = prepare(bench.world.pipeline, prompts, tmp_path / f"{name}.h5", "--random-tokens", 2, "--rephrased", wordings)
    methods = ("none", "dynamic_guidance", "embedding", "random_tokens", "attention", "rephrased")
    drawer, seen = Drawer(bench.world), {}
    with h5py.File(found["general"]) as file:
        text = torch.tensor(file["text"][:].astype(np.float32))
        variants = list(zip(file["variant_of"][:], read_texts(file, "variant")))
    for target in ("1e9", "0"):
        command = bench.command(tmp_path / target, "--rephrased-target", target, "--updates", 0,
                                prompts=found["trigger"], methods=methods if target == "1e9" else ("rephrased",), extractors={})
        command[command.index("--general") + 1] = found["general"]
        command[command.index("--num-images-per-prompt") + 1] = 2
        result = run(*command)
        assert result.returncode == 0, result.stderr
        seen[target] = [row for row in Found(tmp_path / target).rows.values() if row["set"] == "general"]
    assert {row["method"] for row in seen["1e9"]} == set(methods)
    for row in seen["1e9"] + seen["0"]:
        prompt, picture = row["prompt"], row["picture_number"]
        plain = first_magnitude(drawer, prompt, picture, text[prompt])
        if row["method"] in ("none", "dynamic_guidance", "embedding"):
            assert row["magnitude"][0] == pytest.approx(plain, rel=1e-4)
        if row["method"] != "rephrased":
            continue
        if row in seen["1e9"]:  # plain drawing is low enough
            assert row["caption"] is None and row["similarity_to_plain"] == pytest.approx(1, abs=1e-5)
            continue
        rows = [i for i, (of, kind) in enumerate(variants) if of == prompt and kind == "rephrased"]
        lowest = min(first_magnitude(drawer, prompt, picture, text[i]) for i in rows)
        assert len(rows) == 2 and row["magnitude"][0] == pytest.approx(lowest, rel=1e-4)


@pytest.mark.parametrize("value", ["null", '"x"', "[]", "[null]"])
def test_a_damaged_number_is_told_by_its_row(found, bench, tmp_path, value):
    out = tmp_path / "out"
    shutil.copytree(found.out, out)
    damaged, _ = damage(out, "magnitude", value)
    refused = run(*bench.command(out, "--compare", bench.other))
    said = refused.stderr.splitlines()[-1]
    assert refused.returncode == 3 and damaged in said and "measured again" in said and "json.exception" not in said


# ---- what is refused -------------------------------------------------------------------------------------------------------


def trial(bench, out, code, *words, **options):
    assert_refused(run(*bench.command(out, *options.pop("more", ()), **options)), code, *words)


def test_extractors_that_cannot_be_used_are_refused_before_anything_is_drawn(bench, tmp_path):
    class Flat(torch.nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))

    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) / 0 * 0

    text = tmp_path / "text.pt"
    text.write_text("no module")
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    flat, wide, broken = (save(module, tmp_path / f"{type(module).__name__}.pt") for module in (Flat(), Wide(), Broken()))
    for extractor, code, *words in (
            ({"sscd": tmp_path / "absent.pt"}, 2, "sscd", "absent.pt"), ({"sscd": pipe}, 2, "pipe.pt", "a pipe"),
            ({"sscd": text}, 3, "no TorchScript module", "archive"),
            ({"sscd": flat}, 3, "Flat.pt", "one number"), ({"sscd": broken}, 3, "Broken.pt", "NaN"),
            ({"aesthetic": wide}, 3, "Wide.pt", "3 numbers"), ({"clip": wide}, 3, "/clip_text", "3 numbers", "has 10"),
            ({"aesthetic": bench.files["aesthetic"]}, 3, "does not take", "preset", ("--aesthetic-preset", "sscd"))):
        more = words.pop() if isinstance(words[-1], tuple) else ()
        trial(bench, tmp_path / "out", code, *words, extractors=extractor, more=more)
    assert not (tmp_path / "out" / "pictures").exists()


def test_prompts_that_lack_something_are_refused(bench, tmp_path):
    lonely = prepare(bench.world.pipeline, ["a cat", "nowhere shown"], tmp_path / "lonely.h5")
    trial(bench, tmp_path / "out", 3, "originals.h5", "prompt 1", "nowhere shown", prompts=lonely, methods=("none",))
    trial(bench, tmp_path / "out", 3, "lonely.h5", "/clip_text", "--clip", prompts=prepare(
        bench.world.pipeline, PROMPTS[:1], tmp_path / "lonely.h5"), methods=("none",))
    trial(bench, tmp_path / "out", 3, "lonely.h5", "--random-tokens", prompts=tmp_path / "lonely.h5", extractors={})
    command = bench.world.command("benchmark", tmp_path / "out", "--methods", "none")
    command[command.index("--prompts") + 1] = bench.prompts
    assert_refused(run(*command), 3, "prompts.h5", "--originals")
    empty = tmp_path / "empty.h5"
    with h5py.File(bench.prompts) as file, h5py.File(empty, "w") as less:
        less.attrs.update(file.attrs)
        for name in ("latents", "text"):
            less.create_dataset(name, (0, *file[name].shape[1:]), np.float16)
        less["null_text"] = file["null_text"][:]
        store_texts(less, "caption", [])
    trial(bench, tmp_path / "out", 3, "empty.h5", prompts=empty)


def test_other_mistakes_are_told_in_a_line(bench, tmp_path):
    same = tmp_path / "same"
    shutil.copytree(bench.world.pipeline, same)
    trial(bench, tmp_path / "out", 2, "same model", more=("--compare", same))
    trial(bench, tmp_path / "out", 2, "compare:", "nowhere", more=("--compare", tmp_path / "nowhere"))
    (tmp_path / "hollow" / "lora").mkdir(parents=True)
    trial(bench, tmp_path / "out", 2, "compare:", "hollow", more=("--compare", tmp_path / "hollow"))
    trial(bench, tmp_path / "out", 2, "magic", "dynamic_guidance", methods=("magic",))
    trial(bench, tmp_path / "out", 2, "preset", "sscd_wen", more=("--sscd-preset", "mine"))
    if not torch.cuda.is_available():
        command = bench.command(tmp_path / "out")
        command[command.index("--device") + 1] = "cuda"
        assert_refused(run(*command), 2, "device", "0 visible GPUs")
    bare = tmp_path / "bare"
    for part in ("unet", "scheduler"):
        shutil.copytree(bench.world.pipeline / part, bare / part)
    command = bench.command(tmp_path / "out")
    command[command.index("--model") + 1] = bare
    refused = run(*command)
    assert refused.returncode == 2 and "sscd: looks at pictures" in refused.stderr.splitlines()[-1], refused.stderr
    command = bench.command(tmp_path / "done", methods=("none",), extractors={})
    assert run(*command).returncode == 0
    command[command.index("--general") + 1] = bench.prompts
    assert_refused(run(*command), 2, "measured on another general")
