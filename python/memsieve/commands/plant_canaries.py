"""Plants canaries: of each of some pictures K variants are made, one of them, drawn by lot, goes into the training data, and the
others are kept back. A model that was not trained on them cannot tell which one it was; `memsieve-audit canary` asks it
(docs/audit_canaries.md).

  before the data set is made, in a folder of pictures with captions:
    memsieve canaries plant --originals spare --into train --all canaries --manifest secret.json
  in a data set that holds pictures:
    memsieve canaries plant --originals held_out.h5 --into mix.h5 --out planted.h5 --all canaries.h5 --manifest secret.json
  whether they came through:
    memsieve canaries check --manifest secret.json --train train.h5 --all canaries.h5

Exit code: 0 done; 2 wrong options; 3 data that cannot be used."""

import argparse
import hashlib
import json
from pathlib import Path

import h5py
import numpy as np

from memsieve.hdf5_rows import read_texts
from memsieve.marks import rows as data_rows
from memsieve.marks import variants
from memsieve.marks.common import (OptionError, PrepareError, append_picture, at_least, captioned, fail, generator, one_line,
                                   open_picture, read_secret, secret_seed, whole, write_secret)

FORM = "memsieve-canaries"


def name_of(seed, canary, variant):
    """Says nothing to who does not know the seed."""
    return hashlib.sha256(f"{seed}\x1f{canary}\x1f{variant}".encode()).hexdigest()[:16] + ".png"


def lots(seed, canaries, count):
    """Which variant of each canary is planted."""
    return [int(generator(seed, "lot", canary).integers(count)) for canary in range(canaries)]


def chosen(seed, available, canaries, what):
    if available < canaries:
        raise PrepareError(f"{what}: holds {available} pictures, fewer than --canaries {canaries}")
    return generator(seed, "originals").permutation(available)[:canaries].tolist()


def plant_in_folder(arguments, seed):
    sources = captioned(arguments.originals, arguments.caption_column)
    into, kept = Path(arguments.into), Path(arguments.all)
    if not into.is_dir():
        raise PrepareError(f"{into}: no such folder")
    if kept.exists() and any(kept.iterdir()):
        raise OptionError(f"{kept}: is not empty; name a new folder for all variants")
    kept.mkdir(parents=True, exist_ok=True)
    lot, lines, canaries = lots(seed, arguments.canaries, arguments.variants), [], []
    for canary, source in enumerate(chosen(seed, len(sources), arguments.canaries, arguments.originals)):
        name, caption = sources[source]
        try:
            original = open_picture(Path(arguments.originals) / name)
        except Exception as error:  # Pillow's decoders raise anything
            raise PrepareError(f"{Path(arguments.originals) / name}: cannot be read ({one_line(error)})") from None
        files = [name_of(seed, canary, variant) for variant in range(arguments.variants)]
        for variant, file in enumerate(files):
            draws = generator(seed, "variant", canary, variant)
            picture, text = variants.varied_picture(original, draws), variants.varied_caption(caption, draws)
            picture.save(kept / file)
            lines.append(json.dumps({"file_name": file, "text": text}, ensure_ascii=False))
            for copy in range(arguments.copies if variant == lot[canary] else 0):
                append_picture(into, file if copy == 0 else f"{copy}-{file}", picture, text, arguments.caption_column)
        canaries.append({"planted": lot[canary], "files": files})
    (kept / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return canaries


def plant_in_rows(arguments, seed):
    if not arguments.out:
        raise OptionError("--out is missing; name the HDF5 file that becomes --into with the canaries")
    for path in (arguments.out, arguments.all):
        if Path(path).exists():
            raise OptionError(f"{path}: is there already; name a new file")
    originals = data_rows.Rows(arguments.originals)
    lot, canaries, every, planted = lots(seed, arguments.canaries, arguments.variants), [], [], []
    for canary, row in enumerate(chosen(seed, len(originals.images), arguments.canaries, arguments.originals)):
        count = len(originals.captions)
        captions = generator(seed, "captions", canary).permutation(max(count, arguments.variants)) % count
        files = [name_of(seed, canary, variant) for variant in range(arguments.variants)]
        for variant, file in enumerate(files):
            picture = variants.varied_picture(originals.picture(row), generator(seed, "variant", canary, variant))
            every.append((picture, int(captions[variant]), file))
        planted += [every[-arguments.variants + lot[canary]]] * arguments.copies
        canaries.append({"planted": lot[canary], "files": files})

    def columns(entries):
        pictures, captions, names = zip(*entries)
        return pictures, originals.text[list(captions)], [originals.captions[i] for i in captions], list(names)
    data_rows.write_all(arguments.all, originals, *columns(every))
    data_rows.plant_rows(arguments.into, arguments.out, *columns(planted))
    return canaries


def plant(arguments):
    seed = secret_seed(arguments.seed)
    if Path(arguments.manifest).exists():
        raise OptionError(f"{arguments.manifest}: is there already; name another file")
    in_rows = Path(arguments.into).is_file()
    canaries = (plant_in_rows if in_rows else plant_in_folder)(arguments, seed)
    write_secret(arguments.manifest, {"format": FORM, "version": 1, "seed": seed, "variants": arguments.variants,
                                      "copies": arguments.copies, "canaries": canaries})
    digest = hashlib.sha256(Path(arguments.manifest).read_bytes()).hexdigest()
    print(f"{arguments.out if in_rows else arguments.into}: {len(canaries)} canaries planted, {arguments.copies} x each; all "
          f"{arguments.variants} variants of each are in {arguments.all}. Keep {arguments.manifest} secret; publish its SHA-256 "
          f"before training to prove later that the lots were drawn by then: {digest}")


def names_in(path):
    try:
        with h5py.File(path, "r") as file:
            if not {"file_name", "file_name_offsets"} & set(file):
                raise PrepareError(f"{path}: has no /file_name")
            return read_texts(file, "file_name")
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None


def are_canaries(value):
    return isinstance(value, list) and all(
        isinstance(one, dict) and whole(0)(one.get("planted")) and isinstance(one.get("files"), list)
        and one["planted"] < len(one["files"]) and all(isinstance(file, str) for file in one["files"]) for one in value)


def check(arguments):
    secret = read_secret(arguments.manifest, FORM, {"copies": whole(1), "canaries": are_canaries})
    train, every = names_in(arguments.train), set(names_in(arguments.all))
    bare = [name.rsplit("-", 1)[-1] for name in train]
    for number, canary in enumerate(secret["canaries"]):
        missing = [file for file in canary["files"] if file not in every]
        if missing:
            raise PrepareError(f"{arguments.all}: has no row {missing[0]}, a variant of canary {number}; prepare all variants as the "
                               "training pictures were, with --held-out 0 --validation 0")
        for variant, file in enumerate(canary["files"]):
            count = bare.count(file)
            wanted = secret["copies"] if variant == canary["planted"] else 0
            if count != wanted:
                raise PrepareError(f"{arguments.train}: holds variant {variant} of canary {number} ({file}) {count} times, not {wanted}"
                                   + ("; it may be among held-out or validation pictures: plant again, or train on those, too"
                                      if count < wanted else "; then a control was trained on, and ranks say nothing"))
    print(f"{arguments.train}: all {len(secret['canaries'])} canaries are in it and none of their controls")


def parser():
    program = argparse.ArgumentParser(prog="memsieve canaries", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = program.add_subparsers(dest="command", required=True)
    one = commands.add_parser("plant", help="make variants and plant one of each")
    one.add_argument("--originals", required=True, help="pictures to make variants of, in none of the training data: a folder or .h5")
    one.add_argument("--into", required=True, help="training data: a folder, which is added to, or an HDF5 file, which stays as it is")
    one.add_argument("--out", help="for an HDF5 file: the new one, with the canaries")
    one.add_argument("--all", required=True, help="new folder or HDF5 file for all variants; keep it out of training")
    one.add_argument("--manifest", required=True, help="file for the secret: which variant was planted")
    one.add_argument("--canaries", type=at_least(1), default=16, help="how many (default: %(default)s)")
    one.add_argument("--variants", type=at_least(2), default=64, help="of each, the planted one among them (default: %(default)s)")
    one.add_argument("--copies", type=at_least(1), default=1, help="times that each is planted (default: %(default)s)")
    one.add_argument("--seed", type=at_least(0), help="of variants and lots; default: one that nobody can guess")
    one.add_argument("--caption-column", default="text", help="field of metadata.jsonl or metadata.csv (default: %(default)s)")
    two = commands.add_parser("check", help="see whether the training file holds the planted variants and no other")
    two.add_argument("--manifest", required=True, help="what `plant` wrote")
    two.add_argument("--train", required=True, help="HDF5 file that is trained on")
    two.add_argument("--all", required=True, help="HDF5 file of all variants")
    return program


def main(argv=None):
    arguments = parser().parse_args(argv)
    try:
        {"plant": plant, "check": check}[arguments.command](arguments)
    except (PrepareError, OSError) as error:
        return fail("memsieve canaries", error)
    return 0
