"""Pictures and captions of a folder: which there are, and how one is read."""

import csv
import hashlib
import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
CAPTION_SUFFIXES = (".txt", ".caption")
UTF8 = "utf-8-sig"  # many an editor puts a mark in front, which is no part of the text
THUMBNAIL = 64


class PrepareError(Exception):
    """Something that the user can mend; its text is one line."""
    code = 3


class OptionError(PrepareError):
    """The command line is what has to be mended."""
    code = 2


@dataclass(frozen=True)
class Source:
    name: str  # relative to the folder, with slashes
    caption: str | None
    error: str | None = None  # why the picture cannot be used, whatever it holds


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def key(seed, *words):
    """A number that depends on the seed and the words alone: draws made with it survive other changes of the set."""
    text = "\x1f".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# ---- which pictures there are --------------------------------------------------------------------------------------------


def storable(text):
    """Whether HDF5 and the tokenizer take it: no NUL, no half of a character."""
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:
        return False


def source_of(name, caption):
    caption = (caption or "").strip()
    if not storable(name):
        return Source(name, None, "its name is not UTF-8")
    if not caption:
        return Source(name, None, "no caption")
    if not storable(caption):
        return Source(name, None, "its caption holds a NUL or half a character")
    return Source(name, caption)


def checked(folder, where, entry, column):
    name, caption = entry.get("file_name"), entry.get(column)
    if not isinstance(name, str) or not name:
        raise PrepareError(f"{where}: no 'file_name'")
    if not isinstance(caption, str | None):
        raise PrepareError(f"{where}: '{column}' is not text; --caption-column names another")
    inside = Path(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise PrepareError(f"{where}: file_name '{name}' leads out of {folder}")
    return source_of(inside.as_posix(), caption)


def json_objects(lines, path, no_object):
    """("PATH:LINE", dict) of every line that is not empty; `no_object`: what is said of one that holds something else."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise PrepareError(f"{path}:{number}: is not JSON ({one_line(error)})") from None
        if not isinstance(entry, dict):
            raise PrepareError(f"{path}:{number}: {no_object}")
        yield f"{path}:{number}", entry


def from_jsonl(folder, path, column):
    with open(path, encoding=UTF8) as lines:
        for where, entry in json_objects(lines, path, f"is not an object with 'file_name' and '{column}'"):
            yield checked(folder, where, entry, column)


def from_csv(folder, path, column):
    with open(path, encoding=UTF8, newline="") as text:
        reader = csv.DictReader(text)
        try:
            for entry in reader:
                yield checked(folder, f"{path}:{reader.line_num}", entry, column)
        except csv.Error as error:
            raise PrepareError(f"{path}:{reader.line_num}: is not CSV ({one_line(error)})") from None


def from_text_files(folder):
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        beside = next((c for c in map(path.with_suffix, CAPTION_SUFFIXES) if c.is_file()), None)
        name = path.relative_to(folder).as_posix()
        try:
            yield source_of(name, None if beside is None else beside.read_text(encoding=UTF8))
        except UnicodeDecodeError:
            yield Source(name, None, f"{beside.name} is not UTF-8")


def find(folder, column="text"):
    """[Source] of the folder, in the order of its metadata file or of the names."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PrepareError(f"{folder}: no such folder")
    try:
        for name, read in (("metadata.jsonl", from_jsonl), ("metadata.csv", from_csv)):
            if (folder / name).is_file():
                sources = list(read(folder, folder / name, column))
                if not sources:
                    raise PrepareError(f"{folder / name}: is empty")
                if all(source.error == "no caption" for source in sources):
                    raise PrepareError(f"{folder / name}: no line has a '{column}'; --caption-column names another field")
                return sources
    except UnicodeDecodeError as error:
        raise PrepareError(f"{folder / name}: must be UTF-8 ({one_line(error)})") from None
    sources = list(from_text_files(folder))
    if all(source.error == "no caption" for source in sources):
        raise PrepareError(f"{folder}: holds neither metadata.jsonl, metadata.csv nor pictures with .txt files beside them")
    return sources


# ---- one picture ---------------------------------------------------------------------------------------------------------


def open_picture(path):
    """RGB, upright; transparency is put on white. Raises whatever Pillow raises."""
    with Image.open(path) as stored:
        if stored.mode[0] in "IF":  # Pillow would cut its values off at 255
            raise ValueError("greyscale of more than 8 bits; save it with 8")
        stored.load()
        picture = ImageOps.exif_transpose(stored)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def look(path):
    """What the first pass keeps of a picture: {"size": [width, height], "hash": 16 hex digits} or {"error": why}."""
    import imagehash
    try:
        picture = open_picture(path)
        if min(picture.size) < 8:
            return {"error": f"only {picture.width} x {picture.height} pixels"}
        return {"size": list(picture.size), "hash": str(imagehash.phash(picture))}
    except FileNotFoundError:
        return {"error": "no such file"}
    except Exception as error:  # Pillow's decoders raise anything from struct.error to SyntaxError
        return {"error": one_line(error)}


def crop_of(size, resolution, how, seed, name):
    """(resized width, height), (top, left): the shorter side becomes `resolution`, as in diffusers' training scripts."""
    width, height = size
    scale = resolution / min(width, height)
    resized = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    spare = (resized[1] - resolution, resized[0] - resolution)
    if how == "center":
        return resized, (spare[0] // 2, spare[1] // 2)
    return resized, (key(seed, "top", name) % (spare[0] + 1), key(seed, "left", name) % (spare[1] + 1))


def cut(path, size, resolution, how, seed, name, flip=False):
    """-> (uint8 [resolution, resolution, 3], thumbnail uint8 [64, 64, 3], with `flip` the same place of the mirrored picture, else
    None). The place is the same, as in diffusers' training scripts, since SDXL is told its corner."""
    try:
        picture = open_picture(path)
    except Exception as error:
        raise PrepareError(f"{path}: could be read before, but no more ({one_line(error)})") from None
    if list(picture.size) != list(size):
        raise PrepareError(f"{path}: was {size[0]} x {size[1]} pixels before and is {picture.width} x {picture.height} now; "
                           "start anew")
    resized, (top, left) = crop_of(size, resolution, how, seed, name)
    whole, box = picture.resize(resized, Image.Resampling.LANCZOS), (left, top, left + resolution, top + resolution)
    square, mirrored = whole.crop(box), ImageOps.mirror(whole).crop(box) if flip else None
    small = square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(square), np.asarray(small), np.asarray(mirrored) if flip else None


def in_order(executor, function, items, window):
    """function(item) for all items, in their order, at most `window` of them at work or waiting."""
    waiting = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
