"""Prompts for memsieve-audit: read from the files that people have, varied, and written with their tokens (docs/audit.md)."""

import csv
import io
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from memsieve.hdf5_rows import store, store_texts
from memsieve.prepare.pictures import UTF8, PrepareError, json_objects, key, one_line, storable

COLUMNS = ("prompt", "caption", "text", "Prompt", "TEXT", "Caption")  # as the published sets call it
NUMBER_LIMIT, TOKEN_LIMIT = 100_000, 49_400  # of the published random tokens


# ---- what there is ---------------------------------------------------------------------------------------------------------
# Lines end where files end them: str.splitlines would also cut a caption at U+2028 and the like.


def column_of(names, asked, path):
    if asked:
        if asked not in names:
            raise PrepareError(f"{path}: has no '{asked}'; it has {', '.join(map(str, names))}")
        return asked
    for name in COLUMNS:
        if name in names:
            return name
    raise PrepareError(f"{path}: which field is the prompt? name it with --column; there are {', '.join(map(str, names))}")


def from_lines(text, path, column):
    return text.split("\n")


def from_jsonl(text, path, column):
    found = []
    for where, entry in json_objects(text.split("\n"), path, "is not a JSON object"):
        value = entry[column_of(list(entry), column, where)]
        if not isinstance(value, str):
            raise PrepareError(f"{where}: the prompt is not text")
        found.append(value)
    return found


def from_csv(text, path, column):
    """MemBench's SD1_final.csv and the like; separated by commas, or by semicolons if the header has no comma."""
    header = text.partition("\n")[0]
    separator = ";" if ";" in header and "," not in header else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    name = column_of(rows.fieldnames or [], column, path)
    return [row[name] or "" for row in rows]


def from_coco(text, path, column):
    """COCO's captions_*.json: the first caption of every picture."""
    try:
        entries = json.loads(text)["annotations"]
        first = {}
        for entry in sorted(entries, key=lambda e: e["id"]):
            first.setdefault(entry["image_id"], entry["caption"])
    except (ValueError, KeyError, TypeError):
        raise PrepareError(f"{path}: is no file of COCO captions (annotations with id, image_id and caption)") from None
    return [first[picture] for picture in sorted(first)]


READERS = {"txt": from_lines, "jsonl": from_jsonl, "csv": from_csv, "coco": from_coco}
SUFFIXES = {".txt": "txt", ".jsonl": "jsonl", ".csv": "csv", ".json": "coco"}


def read(path, kind="auto", column=None):
    """The prompts of a file, in its order, without empty ones. PrepareError in one line."""
    if kind == "auto":
        kind = SUFFIXES.get(Path(path).suffix.lower())
        if kind is None:
            raise PrepareError(f"{path}: is of no known kind ({', '.join(SUFFIXES)}); name it with --format")
    try:
        text = Path(path).read_text(encoding=UTF8)
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None
    found = [prompt.strip() for prompt in READERS[kind](text, path, column)]
    found = [prompt for prompt in found if prompt]
    if not found:
        raise PrepareError(f"{path}: holds no prompt")
    for number, prompt in enumerate(found):
        if not storable(prompt):
            raise PrepareError(f"{path}: prompt {number} holds a NUL or half a character; it must be text")
    return found


# ---- variants --------------------------------------------------------------------------------------------------------------


@dataclass
class Variant:
    """Another wording of prompt `of`; `kind` is "random tokens", "without WORD" or "rephrased"."""
    of: int
    kind: str
    caption: str


def with_random_tokens(caption, count, draw, decode):
    """Inserted at random spaces, each a number, a token or a word of the prompt, as Somepalli et al. (2023) have it."""
    words = caption.split(" ")
    for _ in range(count):
        kind = draw.randrange(3)
        if kind == 0:
            word = str(draw.randrange(NUMBER_LIMIT))
        elif kind == 1 and decode:
            word = decode(draw)
        else:
            word = draw.choice(caption.split(" "))
        words.insert(draw.randint(0, len(words)), word)
    return " ".join(words)


def variants_of(prompts, seed, random_tokens=0, random_variants=1, leave_out=False, decode=None):
    """All variants of prompts; draws are keyed by seed and prompt. `decode`(draw) -> a random token's text."""
    found = []
    for number, prompt in enumerate(prompts):
        if random_tokens:
            for i in range(random_variants):
                draw = random.Random(key(seed, "random tokens", prompt, i))
                found.append(Variant(number, "random tokens", with_random_tokens(prompt, random_tokens, draw, decode)))
        words = prompt.split()
        if leave_out and len(words) > 1:
            for word in dict.fromkeys(words):
                rest = " ".join(other for other in words if other != word)
                if rest:
                    found.append(Variant(number, f"without {word}", rest))
    return found


def rephrased_of(prompts, path):
    """The wordings of prompts that a file of JSON lines gives: {"prompt": ..., "rephrased": [...]}."""
    try:
        lines = Path(path).read_text(encoding=UTF8).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None
    places, found = {}, []
    for number, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(number)
    for where, entry in json_objects(lines, path, "is not a JSON object"):
        prompt, wordings = entry.get("prompt"), entry.get("rephrased")
        if not (isinstance(prompt, str) and isinstance(wordings, list) and all(isinstance(w, str) and storable(w) for w in wordings)):
            raise PrepareError(f'{where}: must be {{"prompt": text, "rephrased": [texts]}}')
        if prompt.strip() not in places:
            raise PrepareError(f"{where}: '{prompt}' is none of the prompts; it must be written as it is there")
        found += [Variant(number, "rephrased", wording) for number in places[prompt.strip()] for wording in wordings]
    if not found:
        raise PrepareError(f"{path}: holds no wording")
    return found


# ---- the file --------------------------------------------------------------------------------------------------------------


@dataclass
class PromptsFile:
    """Rows of a prompts' file: the prompts, then their variants."""
    captions: list
    text: np.ndarray        # [N, L, D]
    null_text: np.ndarray   # [L, D]
    tokens: list            # N lists of L words
    ends: list              # place of each first end token
    encoder: str            # who made `text`
    variants: list = field(default_factory=list)   # of the last rows
    latents: tuple = None   # shape of a row that is left empty, or
    images: np.ndarray = None
    attributes: dict = field(default_factory=dict)  # of /latents or /images
    pooled: np.ndarray = None
    null_pooled: np.ndarray = None
    time_ids: np.ndarray = None
    clip_text: np.ndarray = None   # [N, D]: a CLIP model's text features

    def write(self, path, prepared_with=None):
        """Whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with h5py.File(temporary, "w") as file:
                self.fill(file)
                if prepared_with is not None:
                    file.attrs["prepared_with"] = json.dumps(prepared_with)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def fill(self, file):
        rows = len(self.captions)
        file.attrs.update(format="memsieve-dataset", version=1)
        if self.images is not None:
            held = store(file, "images", self.images)
        else:
            held = file.create_dataset("latents", (rows, *self.latents), np.float16, chunks=(1, *self.latents))
        held.attrs.update(self.attributes)
        store(file, "text", self.text)
        store(file, "null_text", self.null_text)
        for name in ("pooled", "null_pooled", "time_ids", "clip_text"):
            if getattr(self, name) is not None:
                store(file, name, getattr(self, name))
        store_texts(file, "caption", self.captions)
        store_texts(file, "token", [word for words in self.tokens for word in words])
        store(file, "end_token", np.array(self.ends, np.int64))
        store_texts(file, "encoder", [self.encoder])
        of = np.full(rows, -1, np.int64)
        kinds = [""] * rows
        for row, variant in enumerate(self.variants, rows - len(self.variants)):
            of[row], kinds[row] = variant.of, variant.kind
        store(file, "variant_of", of)
        store_texts(file, "variant", kinds)
