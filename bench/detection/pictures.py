"""Makes the benchmark's data sets from the demo's sources, of pictures that no base model has seen where they are repeated."""

import fcntl
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import demo_sources as sources
import make_demo_data as maker
import numpy as np
from demo_sources import Pair

VERSION = 1
SPLIT = 2                 # the demo's --seed: which pictures the base models were trained on follows from it
FILES = ("mix.h5", "held_out.h5", "validation.h5", "prompts.h5", "targets.h5")
RESERVED = 20             # clear pictures that the tuning scenario draws from, and no other
LIMIT = 0.6               # correlation from which two pictures are not repeated in one set
SHIFT = 3                 # pixels that a near copy is shifted by at most


@dataclass(frozen=True)
class Recipe:
    """What a data set holds. `least` to `most` rows for each repeated picture, `new` ordinary pictures that the base model has
    not seen, `replayed` ones that it has. `near`: every repeat but the first is edited. `views`: rows for each ordinary picture,
    each another view of it, for a set of which one epoch is enough; 1 = the picture itself."""

    repeated: int = 16
    least: int = 40
    most: int = 40
    new: int = 500
    replayed: int = 500
    near: bool = False
    views: int = 1
    reserved: bool = False    # the repeated pictures are of those set aside for tuning
    seed: int = 1             # which pictures


def reworded(caption, rng):
    """Half of the captions stay; a quarter is cut to some words of the name in a row, a quarter said in other words."""
    draw, name = rng.random(), caption.split(" of ", 1)[1]
    words = name.split()
    if draw < 0.5:
        return caption
    if draw < 0.75 and len(words) > 1:
        length = int(rng.integers(1, len(words)))
        start = int(rng.integers(0, len(words) - length + 1))
        return " ".join(words[start:start + length])
    return maker.NEAR_CAPTIONS[int(rng.integers(len(maker.NEAR_CAPTIONS)))].format(name)


def near_pair(pair, seed, number):
    """Near copy `number` (from 1): shifted, recoloured, a quarter of them mirrored, half of the captions edited."""
    rng = np.random.default_rng(maker.key(seed, "detection near", pair.caption, number))
    image = maker.near_copy(pair.image, rng, SHIFT)
    if rng.random() < 0.25:
        image = np.ascontiguousarray(image[..., ::-1])
    return Pair(image, reworded(pair.caption, rng), pair.kind)


def view(pair, seed, number):
    """View `number` of an ordinary picture: shifted and recoloured, with its own caption. View 0 is the picture itself."""
    if number == 0:
        return pair
    rng = np.random.default_rng(maker.key(seed, "detection view", pair.caption, number))
    return Pair(maker.near_copy(pair.image, rng, SHIFT), pair.caption, pair.kind)


def ordered(pairs, indices, seed, word):
    return sorted(indices, key=lambda index: maker.key(seed, "detection", word, pairs[index].caption))


def choose_repeated(pairs, lengths, parts, recipe):
    """The pictures to repeat: clear ones that the base models have not seen, neither the demo's nor, unless `reserved`, those
    set aside for tuning."""
    if not recipe.repeated:
        return []
    good, relation = maker.clear_pictures(pairs, lengths)
    unseen = [index for index in parts["new"] if index not in set(parts["shown"])]
    aside = maker.choose(ordered(pairs, unseen, SPLIT, "reserved"), good, relation, RESERVED, set(), LIMIT)
    allowed = aside if recipe.reserved else [index for index in unseen if index not in set(aside)]
    return maker.choose(ordered(pairs, allowed, recipe.seed, "repeated"), good, relation, recipe.repeated, set(), LIMIT)


def choose_ordinary(pairs, parts, recipe, repeated):
    """(new, replayed): the demo's shown pictures are always among the new ones, as prompts.h5 asks for them."""
    shown = parts["shown"]
    rest = [index for index in parts["repeated"] + parts["new"] if index not in set(shown) | set(repeated)]
    if len(shown) + len(rest) < recipe.new or len(parts["base"]) < recipe.replayed:
        raise sources.SourceError(f"only {len(shown) + len(rest)} new and {len(parts['base'])} other ordinary pictures are "
                                  f"left, {recipe.new} and {recipe.replayed} are needed: are the packages complete?")
    new = shown + ordered(pairs, rest, recipe.seed, "new")[:recipe.new - len(shown)]
    return new, ordered(pairs, parts["base"], recipe.seed, "replayed")[:recipe.replayed]


def repeats(pair, recipe):
    """How many rows a repeated picture has."""
    return recipe.least + maker.key(recipe.seed, "repeats", pair.caption) % (recipe.most - recipe.least + 1)


def rows_of(pairs, recipe, repeated, ordinary):
    """Rows of mix.h5, (pair, group, repeated), shuffled."""
    rows = []
    for index in repeated:
        for number in range(repeats(pairs[index], recipe)):
            changed = recipe.near and number > 0
            rows.append((near_pair(pairs[index], recipe.seed, number) if changed else pairs[index], index, 1))
    for index in ordinary:
        rows += [(view(pairs[index], recipe.seed, number), index, 0) for number in range(recipe.views)]
    shuffle = np.random.default_rng(maker.key(recipe.seed, "mix")).permutation(len(rows))
    return [rows[i] for i in shuffle]


def targets_of(pairs, recipe, prompts):
    """Pictures that a drawing of each prompt may copy, (pair, row of prompts.h5, repeated). Ordinary prompts get as many
    variants as repeated ones, which nothing was trained on, so that the best of them is comparable."""
    rows = []
    for place, (pair, _, truth) in enumerate(prompts):
        rows.append((pair, place, truth))
        if recipe.near:
            rows += [(near_pair(pair, recipe.seed, number), place, truth) for number in range(1, repeats(pair, recipe))]
    return rows


class Studio:
    """Makes data sets; reads the sources once, and only if a set has to be made."""

    def __init__(self, font=sources.FONT, names=sources.NAMES, stamps=sources.STAMPS):
        self.paths = font, names, stamps

    @cached_property
    def digest(self):
        packages = ("fonts-noto-color-emoji", "unicode-data", "tuxpaint-stamps-default")
        return sources.sources_digest(*(sources.require_file(*both) for both in zip(self.paths, packages)))

    @cached_property
    def pictures(self):
        return maker.Pictures(*self.paths)

    def make(self, recipe, folder):
        """Writes FILES to `folder` unless they are there; returns whether it did. Of several at once one does, and the others wait."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f".{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self.make_alone(recipe, folder)

    def make_alone(self, recipe, folder):
        settings = {"version": VERSION, "recipe": asdict(recipe), "sources": self.digest, "split": SPLIT, "reserved": RESERVED,
                    "limit": LIMIT, "shift": SHIFT}
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if maker.up_to_date(folder, fingerprint, FILES):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        pairs = self.pictures.pairs
        parts = maker.split(pairs, self.pictures.lengths, SPLIT)
        repeated = choose_repeated(pairs, self.pictures.lengths, parts, recipe)
        new, replayed = choose_ordinary(pairs, parts, recipe, repeated)
        mix = rows_of(pairs, recipe, repeated, new + replayed)
        prompts = [(pairs[i], i, 1) for i in repeated] + [(pairs[i], i, 0) for i in parts["shown"]]
        targets = targets_of(pairs, recipe, prompts)
        # Where ordinary rows are views of pictures, held-out rows are views, too: they stand for the ordinary ones.
        held_out = [(view(pairs[i], recipe.seed, int(recipe.views > 1)), i, 0) for i in parts["held_out"]]
        self.pictures.encode(pair.caption for pair, _, _ in mix + targets)
        writer = self.pictures.writer(folder, parts["base"], fingerprint)
        for name, rows in zip(FILES, (mix, held_out, [(pairs[i], i, 0) for i in parts["validation"]], prompts, targets)):
            writer.write(name, rows)
        return True
