"""The first pass: what can be read, what are copies, and which picture goes to which file."""

import json
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from memsieve.prepare import pictures
from memsieve.prepare.pictures import OptionError, PrepareError

PARTS = ("held_out", "validation", "train")  # in the order in which they are put in place: train.h5 means all are there


def progress(title, total, done=0):
    return tqdm(total=total, initial=done, desc=title, unit=" pictures", disable=None)


def near_pairs(hashes, distance):
    """Pairs (i, j) of different 64-bit hashes at most `distance` bits apart.

    Of distance + 1 bands two such hashes share at least one, so only hashes with a band in common are compared.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int)
    found = []
    for low, high in zip(edges[:-1], edges[1:]):
        band = (hashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        band, first = band[order], np.arange(len(order))
        for step in range(1, len(order)):
            first = first[first + step < len(order)]
            first = first[band[first] == band[first + step]]
            if not len(first):
                break
            apart = np.bitwise_count(hashes[order[first]] ^ hashes[order[first + step]])
            near = first[apart <= distance]
            found.append(np.stack([order[near], order[near + step]], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), int)


def plain(caption):
    """A caption without differences that nobody means: case, white space, Unicode form."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", caption)).strip().casefold()


def group_ids(hashes, captions, by, distance):
    """[N] int64: rows that are copies share a number; numbers count up from 0 in the order of first rows.

    `by`: "image" (perceptual hashes at most `distance` bits apart, also over third pictures), "caption" (the same caption)
    or "both" (either of them).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    count, pairs = len(captions), []
    if by in ("image", "both"):
        values, row_value = np.unique(np.array([int(h, 16) for h in hashes], dtype=np.uint64), return_inverse=True)
        representative = np.unique(row_value, return_index=True)[1]
        pairs.append(np.stack([np.arange(count), representative[row_value]], 1))
        pairs.append(representative[near_pairs(values, distance)].reshape(-1, 2))
    if by in ("caption", "both"):
        _, first, inverse = np.unique(np.array([plain(c) for c in captions], dtype=object), return_index=True,
                                      return_inverse=True)
        pairs.append(np.stack([np.arange(count), first[inverse]], 1))
    edges = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
    label = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def split(groups, names, held_out, validation, seed):
    """{"train" | "held_out" | "validation": row numbers}. Whole groups are put aside, small ones first, in an order that
    follows from the seed and the name of a group's first row."""
    sizes = np.bincount(groups)
    first = np.unique(groups, return_index=True)[1]
    order = sorted(range(len(sizes)), key=lambda g: (sizes[g], pictures.key(seed, "split", names[first[g]])))
    if 2 * (held_out + validation) > len(groups):
        raise OptionError(f"{held_out} held-out and {validation} validation pictures are more than half of the {len(groups)} "
                           "that can be read; lower --held-out and --validation")
    part = np.zeros(len(sizes), int)
    at = 0
    for number, wanted in ((1, held_out), (2, validation)):
        taken = 0
        while taken < wanted and at < len(order):
            part[order[at]] = number
            taken += sizes[order[at]]
            at += 1
    left = int((part[groups] == 0).sum())
    if 2 * left < len(groups):
        raise OptionError(f"most pictures are copies of those that are put aside, so {left} of {len(groups)} are left to train "
                           "on; lower --held-out and --validation, or --hash-distance")
    return {name: np.flatnonzero(part[groups] == number) for number, name in enumerate(("train", "held_out", "validation"))}


def scan(shop, sources, folder, workers):
    """[what pictures.look says of each source], from scan.jsonl as far as it goes."""
    path, looks = shop.path("scan.jsonl"), []
    if path.exists():
        whole = path.read_bytes()
        whole = whole[:whole.rfind(b"\n") + 1]
        looks = [json.loads(line) for line in whole.splitlines()]
        path.write_bytes(whole)

    def look(source):
        return {"error": source.error} if source.error else pictures.look(folder / source.name)

    with ThreadPoolExecutor(workers) as executor, open(path, "a") as file, \
            progress("reading", len(sources), len(looks)) as bar:
        for seen in pictures.in_order(executor, look, sources[len(looks):], 4 * workers):
            looks.append(seen)
            file.write(json.dumps(seen) + "\n")
            bar.update()
    return looks


class Plan:
    """Which row of which file is which picture."""

    def __init__(self, sources, looks, arguments):
        good = [i for i, seen in enumerate(looks) if "error" not in seen]
        self.skipped = [{"file_name": s.name, "error": seen["error"]} for s, seen in zip(sources, looks) if "error" in seen]
        if not good:
            raise PrepareError(f"{arguments.images}: none of {len(sources)} pictures can be used; the first: "
                               f"{self.skipped[0]['file_name']}: {self.skipped[0]['error']}")
        self.sources = [sources[i] for i in good]
        self.looks = [looks[i] for i in good]
        self.groups = group_ids([seen["hash"] for seen in self.looks], [s.caption for s in self.sources],
                                         arguments.group_by, arguments.hash_distance)
        self.parts = split(self.groups, [s.name for s in self.sources], arguments.held_out, arguments.validation,
                                    arguments.seed)

    def describe(self):
        copies = np.bincount(self.groups)
        parts = ", ".join(f"{name} {len(self.parts[name])}" for name in reversed(PARTS) if len(self.parts[name]))
        return (f"{len(self.sources)} pictures, of which {int((copies[self.groups] > 1).sum())} are copies in "
                f"{int((copies > 1).sum())} groups: {parts}")
