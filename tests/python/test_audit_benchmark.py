"""memsieve-audit benchmark: MemBench's numbers against a second implementation in Python, from the pictures that the program wrote."""
import json
import shutil

import h5py
import keyed_noise
import numpy as np
import pytest
import torch
from audited import PICTURES, PROMPTS, Drawer, Found, prepare
from audited import epsilon_world  # noqa: F401
from conftest import assert_refused, run, torchrun
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from memsieve.hdf5_rows import read_texts, store_texts
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny_pipeline import TOKENS, text_config, tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

METHODS = ("none", "dynamic_guidance", "random_tokens")
GENERAL = ["some words", "b c d"]
# The first prompt has two originals, one of them twice; the last row belongs to no prompt.
ORIGINALS = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0], "nobody's"]
SAME = {4: 0}
COPY, SSCD_COPY = 0.12, 0.9
PER_PROMPT = 4


# ---- inputs ----------------------------------------------------------------------------------------------------------------


def clip_model(folder):
    """A random CLIP model, of which transformers is asked again; its text features differ from caption to caption."""
    torch.manual_seed(3)
    text = text_config(tokenizer(folder), 8)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224,
                              patch_size=56, projection_dim=10)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=10)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        model.text_projection.weight.mul_(30)
        model.visual_projection.weight.mul_(30)
    model.save_pretrained(folder)
    return model


class ImageTower(torch.nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.vision, self.projection = clip.vision_model, clip.visual_projection

    def forward(self, pixels):
        return self.projection(self.vision(pixel_values=pixels).pooler_output)


class Copies(torch.nn.Module):
    """Takes any size; not scaled to length 1, as SSCD's own are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Conv2d(3, 8, 9, 8)
        self.last = torch.nn.Linear(8 * 9, 12)

    def forward(self, pixels):
        seen = torch.nn.functional.adaptive_avg_pool2d(self.first(pixels).relu(), (3, 3))
        return self.last(seen.flatten(1)) * 3


class Weighed(torch.nn.Module):
    """One number, in which every pixel has its own part."""

    def __init__(self, height, width):
        super().__init__()
        torch.manual_seed(2)
        self.register_buffer("weights", torch.randn(3, height, width))

    def forward(self, pixels):
        return (pixels * self.weights).flatten(1).sum(1, keepdim=True) / self.weights.numel()**0.5


def save(module, path, height=224, width=224):
    torch.jit.trace(module.eval(), torch.rand(2, 3, height, width)).save(str(path))
    return path


def with_latents(source, out, captions, shape, seed=0):
    """A data set of pictures (latents) with captions, beside prompts that were prepared."""
    latents = np.random.default_rng(seed).standard_normal((len(captions), *shape)).astype(np.float16)
    for row, same in SAME.items():
        if row < len(captions):
            latents[row] = latents[same]
    with h5py.File(source) as prompts, h5py.File(out, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        file["latents"] = latents
        file["latents"].attrs.update(prompts["latents"].attrs)
        file["text"] = np.zeros((len(captions), *prompts["text"].shape[1:]), np.float16)
        file["null_text"] = prompts["null_text"][:]
        store_texts(file, "caption", captions)
    return out


class Bench:
    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.clip = clip_model(folder / "clip")
        self.prompts = prepare(world.pipeline, [*PROMPTS, PROMPTS[1]], folder / "prompts.h5", "--random-tokens", 2, "--clip",
                               folder / "clip")
        self.general = prepare(world.pipeline, GENERAL, folder / "general.h5", "--random-tokens", 2, "--clip", folder / "clip")
        with h5py.File(self.prompts) as file:
            self.originals = with_latents(self.prompts, folder / "originals.h5", ORIGINALS, file["latents"].shape[1:])
        self.other = folder / "other"
        shutil.copytree(world.pipeline / "scheduler", self.other / "scheduler")
        unet = UNet2DConditionModel.from_pretrained(world.pipeline / "unet")
        with torch.no_grad():
            for weight in unet.parameters():
                weight.mul_(1.05)
        unet.save_pretrained(self.other / "unet")
        self.files = {"sscd": save(Copies(), folder / "sscd.pt", 288, 288), "clip": save(ImageTower(self.clip), folder / "clip.pt"),
                      "aesthetic": save(Weighed(224, 224), folder / "aesthetic.pt")}

    def command(self, out, *more, methods=METHODS, prompts=None, extractors=None):
        words = [word for method in methods for word in ("--methods", method)]
        for name, path in (self.files if extractors is None else extractors).items():
            words += [f"--{name}", path]
        command = self.world.command("benchmark", out, *words, "--general", self.general, "--originals", self.originals,
                                     "--copy-similarity", COPY, "--sscd-copy", SSCD_COPY, *more)
        command[command.index("--prompts") + 1] = prompts or self.prompts
        command[command.index("--num-images-per-prompt") + 1] = PER_PROMPT
        return command


@pytest.fixture(scope="module")
def bench(epsilon_world, tmp_path_factory):
    return Bench(epsilon_world, tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def found(bench, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "out"
    result = run(*bench.command(out, "--compare", bench.other))
    assert result.returncode == 0, result.stderr
    return Found(out)


# ---- the same in Python ----------------------------------------------------------------------------------------------------


def resized(picture, size, square, filter_):
    width, height = picture.size
    short = min(width, height)
    return picture.resize((size, size) if square else (size * width // short, size * height // short), filter_)


def prepared(picture, size, square=False, crop=None, filter_=Image.Resampling.BILINEAR, mean=None, std=None):
    """As torchvision prepares a picture of PIL's."""
    picture = resized(picture, size, square, filter_)
    if crop:
        left, top = (round((side - crop) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + crop, top + crop))
    values = np.asarray(picture, dtype=np.float32) / 255
    return torch.tensor(((values - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))[None]


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
PRESETS = {"sscd": {"size": 288, **IMAGENET}, "sscd_320": {"size": 320, "square": True, **IMAGENET},
           "sscd_wen": {"size": 256, "crop": 224, **HALF}, "sscd_membench": {"size": 288, "square": True, **IMAGENET},
           "clip": {"size": 224, "crop": 224, "filter_": Image.Resampling.BICUBIC, **CLIP}}


def unit(x):
    return x / x.norm()


def unit_pixels(picture):
    x = np.asarray(picture, np.float64).ravel()
    x = x - x.mean()
    return x / np.linalg.norm(x)


class Reference:
    """What MemBench measures of one picture."""

    def __init__(self, bench):
        self.bench = bench
        self.sscd, self.aesthetic = Copies().eval(), Weighed(224, 224).eval()
        vae = AutoencoderKL.from_pretrained(bench.world.pipeline / "vae").eval()
        with h5py.File(bench.originals) as file, torch.no_grad():
            latents = torch.tensor(file["latents"][:].astype(np.float32))
            pixels = vae.decode(latents).sample * 0.5 + 0.5
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        originals = [Image.fromarray(p) for p in pixels]
        self.of = {caption: [i for i, c in enumerate(ORIGINALS) if c == caption] for caption in PROMPTS}
        with torch.no_grad():
            self.features = [unit(self.sscd(prepared(p, **PRESETS["sscd"]))[0]) for p in originals]
        self.units = [unit_pixels(p) for p in originals]

    @torch.no_grad()
    def measures(self, picture, caption):
        near = self.of[caption] if caption in self.of else sorted(sum(self.of.values(), []))
        sscd = unit(self.sscd(prepared(picture, **PRESETS["sscd"]))[0])
        for_clip = prepared(picture, **PRESETS["clip"])
        seen = unit(ImageTower(self.bench.clip)(for_clip)[0])
        tokens = tokenizer_of(self.bench)(caption)
        said = unit(self.bench.clip.text_projection(self.bench.clip.text_model(**tokens).pooler_output)[0])
        return {"similarity": max(float(unit_pixels(picture) @ self.units[i]) for i in near),
                "sscd": max(float(sscd @ self.features[i]) for i in near), "clip": float(seen @ said),
                "aesthetic": float(self.aesthetic(for_clip))}


def tokenizer_of(bench):
    from transformers import CLIPTokenizer
    tokens = CLIPTokenizer.from_pretrained(bench.folder / "clip")
    return lambda caption: tokens(caption, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")


@pytest.fixture(scope="module")
def reference(bench):
    return Reference(bench)


# ---- tests -----------------------------------------------------------------------------------------------------------------


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
    result = torchrun(2, *bench.command(out, "--compare", bench.other))
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
    lines = (out / "measurements.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[2])
    row["magnitude"] = json.loads(value)
    (out / "measurements.jsonl").write_text("".join([*lines[:2], json.dumps(row) + "\n", *lines[3:]]))
    refused = run(*bench.command(out, "--compare", bench.other))
    assert_refused(refused, 3, row["unit"], "measured again")
    assert "json.exception" not in refused.stderr


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
    flat, wide, broken = (save(module, tmp_path / f"{type(module).__name__}.pt") for module in (Flat(), Wide(), Broken()))
    for extractor, code, *words in (
            ({"sscd": tmp_path / "absent.pt"}, 2, "sscd", "absent.pt"), ({"sscd": text}, 3, "no TorchScript module", "archive"),
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
