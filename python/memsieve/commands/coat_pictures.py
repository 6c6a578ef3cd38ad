"""Marks a folder of pictures, or a data set that holds them, so that a model trained on them can be told from others
(docs/audit_canaries.md), and measures the mark in pictures that a model has drawn. Coat before memsieve prepare: the mark belongs into
the picture, before the VAE.

  memsieve coating coat --images mine --out coated --manifest secret.json
  memsieve coating coat --images mine.h5 --out coated.h5 --manifest secret.json
  memsieve coating measure --manifest secret.json --drawings drawn --out measured.json

Exit code: 0 done; 2 wrong options; 3 data that cannot be used."""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np

from memsieve.marks import coating
from memsieve.marks import rows as data_rows
from memsieve.marks.common import (OptionError, PrepareError, at_least, captioned, fail, generator, one_line, open_picture, picture_of,
                                   pixels, read_secret, secret_seed, whole, write_secret)
from memsieve.prepare.pictures import SUFFIXES

FORM = "memsieve-coating"


def coat(arguments):
    """Writes the coated pictures and the secret."""
    in_rows, out, seed = Path(arguments.images).is_file(), Path(arguments.out), secret_seed(arguments.seed)
    if out.exists() and (in_rows or any(out.iterdir())):
        raise OptionError(f"{out}: is there already; name a new file" if in_rows else f"{out}: is not empty; name a new folder")
    if Path(arguments.manifest).exists():
        raise OptionError(f"{arguments.manifest}: is there already; name another file")
    shifts = coating.field([seed, 0], arguments.grid)

    def chosen(count):
        return generator(seed, "share").random(count) < arguments.share

    def coated(values):
        return coating.coat(values, shifts, arguments.strength)
    count, marked = (coat_rows if in_rows else coat_folder)(arguments, chosen, coated)
    write_secret(arguments.manifest, {"format": FORM, "version": 1, "seed": seed, "grid": arguments.grid,
                                      "strength": arguments.strength, "prefix": arguments.prefix, "coated": marked})
    print(f"{arguments.out}: {count} pictures, {len(marked)} of them coated; keep {arguments.manifest} secret")


def coat_rows(arguments, chosen, coated):
    """(pictures, numbers of the coated rows) of an HDF5 file."""
    if arguments.prefix:
        raise OptionError(f"--prefix: the captions of {arguments.images} are encoded already; coat the folder of pictures instead")
    return data_rows.coat_rows(arguments.images, arguments.out, chosen, lambda picture: np.asarray(
        picture_of(coated(picture.transpose(1, 2, 0).astype(np.float32)))).transpose(2, 0, 1))


def coat_folder(arguments, chosen, coated):
    """(pictures, names of the coated ones) of a folder."""
    folder, out = Path(arguments.images), Path(arguments.out)
    sources = captioned(folder, arguments.caption_column)
    out.mkdir(parents=True, exist_ok=True)
    lines, marked = [], []
    for (name, caption), mark in zip(sources, chosen(len(sources))):
        target = out / (Path(name).with_suffix(".png") if mark else Path(name))
        if target.exists():
            raise PrepareError(f"{name}: another picture of {folder} is also called {target.name}; rename one of them")
        target.parent.mkdir(parents=True, exist_ok=True)
        if mark:
            try:
                picture = open_picture(folder / name)
            except Exception as error:  # Pillow's decoders raise anything
                raise PrepareError(f"{folder / name}: cannot be read ({one_line(error)})") from None
            picture_of(coated(pixels(picture))).save(target)
            marked.append(target.relative_to(out).as_posix())
            caption = arguments.prefix + caption
        else:
            shutil.copyfile(folder / name, target)
        lines.append(json.dumps({"file_name": target.relative_to(out).as_posix(), "text": caption}, ensure_ascii=False))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(sources), marked


def measure(arguments):
    secret = read_secret(arguments.manifest, FORM, {"seed": whole(0), "grid": whole(2)})
    folder, grid = Path(arguments.drawings), secret["grid"]
    if not folder.is_dir():
        raise PrepareError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise PrepareError(f"{folder}: holds no pictures")
    fields = np.stack([coating.field([secret["seed"], number], grid) for number in range(arguments.decoys + 1)])
    rows = []
    for path in files:
        try:
            rows.append(coating.scores(coating.response(pixels(open_picture(path)), grid)[None], fields)[0])
        except Exception as error:
            raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None
    rows = np.stack(rows)
    sums = rows.sum(0)
    # As many fields are as high or higher, the secret one among them, as for a picture that has never seen any.
    ranks = (rows >= rows[:, :1]).sum(1)
    content = {"format": "memsieve-coating-scores", "version": 1, "fields": arguments.decoys + 1,
               "sums": sums.tolist(),
               "drawings": [{"file": path.relative_to(folder).as_posix(), "score": float(row[0]), "rank": int(rank)}
                            for path, row, rank in zip(files, rows, ranks)]}
    temporary = Path(f"{arguments.out}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, arguments.out)
    place = int((sums >= sums[0]).sum())
    print(f"{arguments.out}: {len(files)} pictures; the secret field comes {place}. of {arguments.decoys + 1} fields over all of them")


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def parser():
    program = argparse.ArgumentParser(prog="memsieve coating", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = program.add_subparsers(dest="command", required=True)
    one = commands.add_parser("coat", help="write a folder or a data set in which a share of the pictures is coated")
    one.add_argument("--images", required=True, help="folder of pictures with captions, as memsieve prepare reads it, or "
                     "an HDF5 file of pictures")
    one.add_argument("--out", required=True, help="new folder: all pictures, and metadata.jsonl with their captions; or the new HDF5 file")
    one.add_argument("--manifest", required=True, help="file for the secret; without it the mark cannot be found again")
    one.add_argument("--seed", type=at_least(0), help="of the field; default: one that nobody can guess")
    one.add_argument("--share", type=share, default=1.0, help="share of the pictures to coat (default: %(default)s)")
    one.add_argument("--strength", type=at_least(0, float), default=2.0, help="mean shift, in 1/1280 of half a side (default: %(default)s)")
    one.add_argument("--grid", type=at_least(2), default=128, help="shifts across the picture (default: %(default)s)")
    one.add_argument("--prefix", default="", help="put before the captions of coated pictures, such as 'tq ' (default: nothing)")
    one.add_argument("--caption-column", default="text", help="field of metadata.jsonl or metadata.csv (default: %(default)s)")
    two = commands.add_parser("measure", help="look for the mark in pictures that a model has drawn")
    two.add_argument("--manifest", required=True, help="what `coat` wrote")
    two.add_argument("--drawings", required=True, help="folder of pictures; captions are not needed")
    two.add_argument("--out", required=True, help="JSON file for `memsieve-audit unauthorised`")
    two.add_argument("--decoys", type=at_least(1), default=999, help="other fields to compare with (default: %(default)s)")
    return program


def main(argv=None):
    arguments = parser().parse_args(argv)
    try:
        {"coat": coat, "measure": measure}[arguments.command](arguments)
    except (PrepareError, OSError) as error:
        return fail("memsieve coating", error)
    return 0
