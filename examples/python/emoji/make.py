#!/usr/bin/env python3
"""Makes train.h5 and held_out.h5 (docs/data_format.md), beside this file or in the folder that is named, from data/demo: emoji with their
captions, of which six stand sixteen times in the training set. Pictures of the font Noto Color Emoji, which the SIL Open Font License lets
anybody show. Needs the package memsieve, as it is in the tree: PYTHONPATH=python."""
import sys
from pathlib import Path

import h5py
import numpy as np
from memsieve.hdf5_rows import read_texts, store_texts

ROOT = Path(__file__).resolve().parents[3]
REPEATED, COPIES, OTHERS, HELD_OUT = 6, 16, 60, 16


def emoji(file):
    """({caption: first row}, those that are repeated), emoji alone."""
    rows = {}
    for row, caption in enumerate(read_texts(file, "caption")):
        if caption.startswith("an emoji of "):
            rows.setdefault(caption, row)
    return rows, [caption for caption, row in rows.items() if file["repeated"][row]]


def write(path, source, captions, rows):
    """One chunk for each data set, so that copies take no room."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        for name in ("images", "text"):
            values = np.stack([source[name][rows[caption]] for caption in captions])
            made = file.create_dataset(name, data=values, chunks=values.shape, compression=9, shuffle=name == "text", fletcher32=True)
            made.attrs.update(source[name].attrs)
        file["null_text"] = source["null_text"][:]
        store_texts(file, "caption", captions)
        group = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        file["group_id"] = np.array([group[caption] for caption in captions])


def main(folder=Path(__file__).parent):
    data, folder = ROOT / "data" / "demo", Path(folder)
    with h5py.File(data / "mix.h5") as file:
        rows, repeated = emoji(file)
        others = [caption for caption in sorted(rows) if caption not in repeated][::len(rows) // OTHERS - 1][:OTHERS]
        write(folder / "train.h5", file, [caption for caption in repeated[:REPEATED] for _ in range(COPIES)] + others, rows)
    with h5py.File(data / "held_out.h5") as file:
        rows, _ = emoji(file)
        write(folder / "held_out.h5", file, sorted(rows)[:HELD_OUT], rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
