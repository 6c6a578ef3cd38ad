"""What the commands that mark training data share: pictures with captions, secret files, errors of one line."""

import argparse
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from memsieve.prepare.pictures import OptionError, PrepareError, find, one_line, open_picture

__all__ = ["OptionError", "PrepareError", "append_picture", "at_least", "captioned", "fail", "generator", "one_line", "open_picture",
           "picture_of", "pixels", "read_secret", "secret_seed", "whole", "write_secret"]


def secret_seed(given):
    """The seed that was given, or one that nobody can guess."""
    return secrets.randbits(63) if given is None else given


def generator(seed, *words):
    """Random numbers that depend on the seed and the words alone."""
    return np.random.default_rng([seed, *(int.from_bytes(str(word).encode(), "big") for word in words)])


def captioned(folder, column="text"):
    """[(name, caption)] of the pictures of a folder that can be used."""
    sources = [source for source in find(folder, column) if source.error is None]
    if not sources:
        raise PrepareError(f"{folder}: holds no picture with a caption")
    return [(source.name, source.caption) for source in sources]


def append_picture(folder, name, picture, caption, column="text"):
    """Adds a picture to a training folder, its caption where those of the folder stand."""
    folder = Path(folder)
    path = folder / name
    if path.exists():
        raise PrepareError(f"{path}: is there already; plant into a folder without canaries")
    if (folder / "metadata.csv").is_file() and not (folder / "metadata.jsonl").is_file():
        raise PrepareError(f"{folder}: metadata.csv cannot be added to; turn it into metadata.jsonl, or into .txt files")
    picture.save(path)
    if not (folder / "metadata.jsonl").is_file():
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        return
    text = (folder / "metadata.jsonl").read_text(encoding="utf-8")
    with open(folder / "metadata.jsonl", "a", encoding="utf-8") as lines:
        lines.write(("" if text.endswith("\n") or not text else "\n") + json.dumps({"file_name": name, column: caption}) + "\n")


def write_secret(path, content):
    """Writes JSON that only the owner may read; never over another file."""
    path = Path(path)
    if path.exists():
        raise OptionError(f"{path}: is there already; name another file, since what it holds cannot be made anew")
    handle, temporary = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def whole(least):
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_secret(path, form, fields):
    """What write_secret wrote, if it says that it is of this form. `fields`: {name: whether a value of it can be used}."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(content, dict) or content.get("format") != form or content.get("version") != 1:
        raise PrepareError(f"{path}: is no {form} file of version 1")
    for name, usable in fields.items():
        if name not in content or not usable(content[name]):
            raise PrepareError(f"{path}: '{name}' is missing or damaged; name the file as it was written")
    return content


def at_least(least, kind=int):
    """For argparse: a finite number from `least` up."""
    def parse(text):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value
    return parse


def fail(program, error):
    """Prints the line and returns the exit code."""
    print(f"{program}: {one_line(error)}", file=sys.stderr)
    return getattr(error, "code", 3)


def pixels(picture):
    """[H, W, 3] float32 in 0..255."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32)


def picture_of(values):
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
