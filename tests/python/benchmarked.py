"""A benchmark of tiny models with extractors, run once, and what its numbers are in Python, from the pictures that it wrote."""
import shutil

import h5py
import numpy as np
import pytest
import torch
from audited import PROMPTS, Found, prepare
from audited import epsilon_world  # noqa: F401
from conftest import run
from diffusers import AutoencoderKL, UNet2DConditionModel
from memsieve.hdf5_rows import store_texts
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
