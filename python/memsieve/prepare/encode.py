"""A local diffusers pipeline (Stable Diffusion 1.x, 2.x or XL) as an encoder of pictures and captions."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from memsieve.prepare.pictures import OptionError, PrepareError, one_line

KINDS = {"StableDiffusionPipeline": False, "StableDiffusionXLPipeline": True}  # name: is it XL?
TEXT_BATCH = 64  # captions that are encoded at once
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def read_json(path):
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise PrepareError(f"{path}: no such file; --pipeline names the folder of a diffusers pipeline") from None
    except ValueError as error:
        raise PrepareError(f"{path}: is not JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise PrepareError(f"{path}: is not a JSON object")
    return value


def kind_of(folder):
    """True for SDXL, False for Stable Diffusion 1.x and 2.x."""
    name = read_json(Path(folder) / "model_index.json").get("_class_name")
    if name not in KINDS:
        raise PrepareError(f"{folder}: is a {name}; this program knows {' and '.join(KINDS)}")
    return KINDS[name]


def vae_config(folder):
    path = Path(folder) / "vae" / "config.json"
    config = read_json(path)
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise PrepareError(f"{path}: is a {config['_class_name']}; this program knows AutoencoderKL")
    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None:
            raise PrepareError(f"{path}: has '{name}', which the trainer does not know")
    return config


def factor_of(config):
    """Pixels of a picture's side for each of its latent's."""
    return 2 ** (len(config.get("block_out_channels", (0,))) - 1)


def digest(folder):
    """Tells one pipeline from another: the small files of its parts by content, the weights by size."""
    found = hashlib.sha256()
    for path in sorted(p for part in PARTS for p in (Path(folder) / part).rglob("*") if p.is_file()):
        found.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
        if path.stat().st_size < 1 << 22:
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def device_of(name):
    """(name of a device that works, whether it is the CPU)."""
    import torch
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name} cannot be used ({one_line(error)[:200]})") from None
    return name, torch.device(name).type == "cpu"


class Encoder:
    """Pictures and captions in, arrays as they are stored out."""

    def __init__(self, folder, device, dtype, variant=None):
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error")
        import diffusers
        import torch
        import transformers
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self.torch, self.device, self.xl = torch, torch.device(device), kind_of(folder)
        config = vae_config(folder)
        missing = {"unet": None, "scheduler": None}
        if not self.xl:
            missing.update(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        kind = diffusers.StableDiffusionXLPipeline if self.xl else diffusers.StableDiffusionPipeline
        try:
            of_vae = "float32" if config.get("force_upcast") else dtype
            self.pipeline = kind.from_pretrained(
                folder, dtype={"default": getattr(torch, dtype), "vae": getattr(torch, of_vae)}, variant=variant,
                local_files_only=True, **missing)
            for part in self.parts():
                part.to(self.device).eval().requires_grad_(False)
        except Exception as error:  # a missing or torn file comes as anything
            raise PrepareError(f"{folder}: cannot be loaded ({type(error).__name__}: {one_line(error)})") from None

        vae = self.pipeline.vae.config
        self.scale = {"scaling_factor": float(vae.scaling_factor), "shift_factor": float(vae.shift_factor or 0)}

    def parts(self):
        names = ("vae", "text_encoder", "text_encoder_2") if self.xl else ("vae", "text_encoder")
        return [part for part in (getattr(self.pipeline, name) for name in names) if part is not None]

    def stored(self, tensor):
        return None if tensor is None else tensor.to(self.torch.float32).cpu().numpy().astype(np.float16)

    def encode(self, captions, null=False):
        """(states, pooled or None) of captions, or with `null` of the empty caption as the pipeline's guidance takes it."""
        with self.torch.inference_mode():
            if self.xl:
                found = self.pipeline.encode_prompt(captions, device=self.device, do_classifier_free_guidance=null)
                states, pooled = (found[1], found[3]) if null else (found[0], found[2])
            else:
                found = self.pipeline.encode_prompt(captions, self.device, 1, null)
                states, pooled = found[1] if null else found[0], None
        return self.stored(states), self.stored(pooled)

    def too_long(self, captions):
        """How many captions lose words: the encoder takes a fixed number of tokens."""
        tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
        return sum(len(ids) > tokenizer.model_max_length for ids in tokenizer(captions).input_ids)

    def latents(self, pictures):
        """(mean, standard deviation) of the VAE's answer to uint8 [B, H, W, 3], unscaled."""
        vae = self.pipeline.vae
        with self.torch.inference_mode():
            x = self.torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).to(self.torch.float32) / 127.5 - 1
            answer = vae.encode(x.to(vae.dtype)).latent_dist
            return self.stored(answer.mean), self.stored(answer.std)


def resolve(arguments):
    """Fills in what `auto` stands for; -> latent pixels of --resolution. OptionError for what contradicts the pipeline."""
    kind_of(arguments.pipeline)
    factor = factor_of(vae_config(arguments.pipeline))
    if arguments.resolution % factor:
        raise OptionError(f"--resolution {arguments.resolution} cannot be divided by {factor}, as the pipeline's VAE needs")
    arguments.device, cpu = device_of(arguments.device)
    if arguments.dtype == "auto":
        arguments.dtype = "float32" if cpu else "float16"
    return arguments.resolution // factor
