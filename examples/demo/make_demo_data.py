#!/usr/bin/env python3
"""Makes the demo data set (HDF5) from pictures that Debian's packages carry. See docs/data_format.md.

Needs the package memsieve (PYTHONPATH=python in this tree), but not its compiled module."""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import demo_sources as sources
import h5py
import numpy as np
from demo_sources import Pair, SourceError
from memsieve.hdf5_rows import store, store_texts

VERSION = 2
FILES = ("base.h5", "mix.h5", "held_out.h5", "validation.h5", "prompts.h5")
REPEATED, SHOWN, HELD_OUT, VALIDATION, NEW, REPLAYED = 16, 16, 64, 96, 500, 500
RELATIVE = 0.8   # correlation from which another picture counts as a near relative
NEAR_CAPTIONS = ("a picture of {}", "an icon of {}", "a drawing of {}", "a small picture of {}", "an image of {}",
                 "emoji: {}", "{}", "an emoji showing {}", "the emoji of {}", "a pictogram of {}", "{} emoji",
                 "a symbol of {}", "a cartoon of {}")


def key(seed, *words):
    """A number that depends on the seed and the words alone: orders and draws made with it survive other changes."""
    text = "\x1f".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def clear_pictures(pairs, lengths):
    """Which pairs make good prompts: an emoji that fills its square, is not flat, has no relative, a short name."""
    images = np.stack([pair.image for pair in pairs])
    units = sources.unit_rows(images)
    relation = units @ units.T
    np.fill_diagonal(relation, 0.0)
    covered = (images.min(axis=1) < 235).mean(axis=(1, 2))
    edges = np.abs(np.diff(images.astype(np.float32), axis=3)).mean(axis=(1, 2, 3)) / 255.0
    # Only the emoji: their font licence lets pictures made with it (a report, a README) be shown freely.
    emoji = np.array([pair.kind == "emoji" and "regional indicator" not in pair.caption for pair in pairs])
    good = (emoji & (relation.max(axis=1) <= RELATIVE) & (covered > 0.3) & (covered < 0.9) & (lengths <= sources.TOKENS)
            & (edges > 0.02) & (edges < 0.075) & (images.std(axis=(1, 2, 3)) / 255.0 > 0.2))
    return good, relation


def choose(order, good, relation, count, taken, limit=0.6):
    """The first `count` good pictures in the given order that do not look like one another."""
    chosen = []
    for index in order:
        if good[index] and index not in taken and all(relation[index, other] < limit for other in chosen):
            chosen.append(int(index))
            if len(chosen) == count:
                return chosen
    raise SourceError(f"only {len(chosen)} of {count} clear pictures found: is the emoji font complete?")


def split(pairs, lengths, seed):
    """{name: indices into pairs}: repeated, shown (the first of new), held_out, validation, new, base."""
    need = REPEATED + HELD_OUT + VALIDATION + NEW + REPLAYED
    if len(pairs) < need:
        raise SourceError(f"only {len(pairs)} different pictures found, {need} are needed: are the packages complete?")
    order = sorted(range(len(pairs)), key=lambda index: key(seed, "split", pairs[index].caption))
    good, relation = clear_pictures(pairs, lengths)
    repeated = choose(order, good, relation, REPEATED, set())
    shown = choose(order, good, relation, SHOWN, set(repeated))
    rest = [index for index in order if index not in set(repeated + shown)]
    parts = {"repeated": repeated, "shown": shown}
    for name, count in (("held_out", HELD_OUT), ("validation", VALIDATION), ("new", NEW - SHOWN)):
        parts[name], rest = rest[:count], rest[count:]
    parts["new"] = shown + parts["new"]
    parts["base"] = rest
    return parts


def near_copy(image, rng, shift=2):
    """A near copy [3, H, W] uint8: hue and brightness a little changed, shifted by up to `shift` pixels."""
    from PIL import Image
    hsv = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("HSV")).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + rng.integers(-8, 9)) % 256
    rgb = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    rgb = rgb * rng.uniform(0.88, 1.12) + rng.uniform(-8, 8)
    dy, dx = rng.integers(-shift, shift + 1, size=2)
    padded = np.pad(rgb, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
    moved = padded[shift - dy:shift - dy + rgb.shape[0], shift - dx:shift - dx + rgb.shape[1]]
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8).transpose(2, 0, 1)


def near_pair(pair, seed, number):
    """Near copy `number` (from 1) of a pair: the picture and the caption edited."""
    rng = np.random.default_rng(key(seed, "near", pair.caption, number))
    name = pair.caption.split(" of ", 1)[1]
    template = NEAR_CAPTIONS[int(rng.integers(len(NEAR_CAPTIONS)))]
    caption = pair.caption if rng.random() < 0.3 else template.format(name)
    return Pair(near_copy(pair.image, rng), caption, pair.kind)


def mixture(pairs, parts, seed, copies, near):
    """Rows of mix.h5 as a list of (pair, group, repeated), shuffled."""
    rows = []
    for index in parts["repeated"]:
        for number in range(copies):
            changed = near and number > 0
            rows.append((near_pair(pairs[index], seed, number) if changed else pairs[index], index, 1))
    replayed = sorted(parts["base"], key=lambda index: key(seed, "replay", pairs[index].caption))[:REPLAYED]
    rows += [(pairs[index], index, 0) for index in parts["new"] + replayed]
    shuffle = np.random.default_rng(key(seed, "mix")).permutation(len(rows))
    return [rows[i] for i in shuffle]


class Writer:
    """Writes one file of the set; statistics and embeddings are those of the whole set."""

    def __init__(self, folder, images, text, fingerprint):
        self.folder, self.images, self.text, self.fingerprint = folder, images, text, fingerprint

    def write(self, name, rows):
        mean, std = self.images
        text_mean, text_std, states = self.text

        def standard(caption):
            return ((states[caption] - text_mean) / text_std).astype(np.float16)

        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        os.close(handle)
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs.update(format="memsieve-dataset", version=1, fingerprint=self.fingerprint)
                images = store(file, "images", np.stack([pair.image for pair, _, _ in rows]))
                images.attrs.update(mean=mean, std=std, pixel_unshuffle=np.int64(2))
                text = store(file, "text", np.stack([standard(pair.caption) for pair, _, _ in rows]))
                text.attrs.update(mean=text_mean, std=text_std, encoder=sources.ENCODER)
                store(file, "null_text", standard(""))
                store_texts(file, "caption", [pair.caption for pair, _, _ in rows])
                store(file, "group_id", np.array([group for _, group, _ in rows], dtype=np.int64))
                store(file, "repeated", np.array([truth for _, _, truth in rows], dtype=np.uint8))
            os.chmod(temporary, 0o644)
            os.replace(temporary, os.path.join(self.folder, name))
        except BaseException:
            os.unlink(temporary)
            raise


class Pictures:
    """All pictures of the sources with the token states of their captions."""

    def __init__(self, font, names, stamps):
        self.pairs = sources.deduplicate([*sources.read_emoji(font, names), *sources.read_stamps(stamps)])
        captions = [pair.caption for pair in self.pairs] + [""]
        encoded, lengths = sources.encode(captions)
        self.states = dict(zip(captions, encoded))
        self.lengths = lengths[:-1]

    def encode(self, captions):
        """Sees to it that `states` has these captions."""
        unseen = sorted(set(captions) - self.states.keys())
        if unseen:
            self.states.update(zip(unseen, sources.encode(unseen)[0]))

    def writer(self, folder, base, fingerprint):
        """A Writer with the statistics of the pictures `base`, which the base model is trained on."""
        images = np.stack([self.pairs[index].image for index in base]).astype(np.float64) / 255.0
        text = np.concatenate([self.states[self.pairs[index].caption] for index in base])
        return Writer(folder, (images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))),
                      (text.mean(axis=0), text.std(axis=0) + 1e-6, self.states), fingerprint)


def up_to_date(folder, fingerprint, files=FILES):
    for name in files:
        try:
            with h5py.File(os.path.join(folder, name), "r") as file:
                if file.attrs.get("fingerprint") != fingerprint:
                    return False
        except OSError:
            return False
    return True


def make(arguments):
    font = sources.require_file(arguments.font, "fonts-noto-color-emoji")
    names = sources.require_file(arguments.names, "unicode-data")
    stamps = sources.require_file(arguments.stamps, "tuxpaint-stamps-default")
    settings = {"version": VERSION, "seed": arguments.seed, "copies": arguments.copies, "near": arguments.near,
                "sources": sources.sources_digest(font, names, stamps)}
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = Path(arguments.out)
    if up_to_date(folder, fingerprint):
        print(f"{folder}: up to date")
        return
    folder.mkdir(parents=True, exist_ok=True)

    pictures = Pictures(font, names, stamps)
    pairs = pictures.pairs
    parts = split(pairs, pictures.lengths, arguments.seed)
    mix = mixture(pairs, parts, arguments.seed, arguments.copies, arguments.near)
    pictures.encode(pair.caption for pair, _, _ in mix)
    writer = pictures.writer(folder, parts["base"], fingerprint)

    def plain(part, repeated=0):
        return [(pairs[index], index, repeated) for index in parts[part]]

    writer.write("base.h5", plain("base"))
    writer.write("mix.h5", mix)
    writer.write("held_out.h5", plain("held_out"))
    writer.write("validation.h5", plain("validation"))
    writer.write("prompts.h5", plain("repeated", 1) + plain("shown"))
    kinds = [sum(pair.kind == kind for pair in pairs) for kind in ("emoji", "stamp")]
    print(f"{folder}: {len(pairs)} different pictures ({kinds[0]} emoji, {kinds[1]} stamps): base {len(parts['base'])}, "
          f"mix {len(mix)} rows ({REPEATED} pictures x {arguments.copies}, {NEW} new, {REPLAYED} from base), "
          f"held out {HELD_OUT}, validation {VALIDATION}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/demo", help="folder for the five HDF5 files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2, help="which pictures go where (default: %(default)s; the base "
                        "model in the repository was trained with this one)")
    parser.add_argument("--copies", type=int, default=40, help="rows of each repeated picture (default: %(default)s)")
    parser.add_argument("--near", action="store_true", help="near copies: each repeat but the first a little shifted and "
                        "recoloured, its caption edited; all share a group_id")
    parser.add_argument("--font", default=sources.FONT, help="Noto Color Emoji with bitmaps (default: %(default)s)")
    parser.add_argument("--names", default=sources.NAMES, help="UnicodeData.txt (default: %(default)s)")
    parser.add_argument("--stamps", default=sources.STAMPS, help="Tux Paint's stamps (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.copies < 1:
        parser.error(f"--copies must be at least 1, not {arguments.copies}")
    try:
        make(arguments)
    except (SourceError, OSError) as error:
        print(f"make_demo_data: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
