#!/usr/bin/env python3
"""Makes train.h5 and held_out.h5 beside this file (docs/data_format.md) from data/demo: emoji with their captions, of which six stand
sixteen times in the training set. Pictures of the font Noto Color Emoji, which the SIL Open Font License lets anybody show."""
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[3]
REPEATED, COPIES, OTHERS, HELD_OUT = 6, 16, 60, 32


def emoji(file):
    """({caption: first row}, those that are repeated), emoji alone."""
    offsets, data = file["caption_offsets"][:], file["caption_bytes"][:].tobytes()
    rows, repeated = {}, []
    for row, (first, end) in enumerate(zip(offsets, offsets[1:])):
        caption = data[first:end].decode()
        if caption.startswith("an emoji of ") and rows.setdefault(caption, row) == row and file["repeated"][row]:
            repeated.append(caption)
    return rows, repeated


def write(path, source, captions, rows):
    """One chunk for each data set, so that copies take no room."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format="memsieve-dataset", version=1)
        for name in ("images", "text"):
            values = np.stack([source[name][rows[caption]] for caption in captions])
            made = file.create_dataset(name, data=values, chunks=values.shape, compression=9, shuffle=False, fletcher32=True)
            made.attrs.update(source[name].attrs)
        file["null_text"] = source["null_text"][:]
        file.create_dataset("caption", data=captions, dtype=h5py.string_dtype())
        group = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        file["group_id"] = np.array([group[caption] for caption in captions])


def main():
    here, data = Path(__file__).parent, ROOT / "data" / "demo"
    with h5py.File(data / "mix.h5") as file:
        rows, repeated = emoji(file)
        others = [caption for caption in sorted(rows) if caption not in repeated][::len(rows) // OTHERS - 1][:OTHERS]
        write(here / "train.h5", file, [caption for caption in repeated[:REPEATED] for _ in range(COPIES)] + others, rows)
    with h5py.File(data / "held_out.h5") as file:
        rows, _ = emoji(file)
        write(here / "held_out.h5", file, sorted(rows)[:HELD_OUT], rows)


if __name__ == "__main__":
    main()
