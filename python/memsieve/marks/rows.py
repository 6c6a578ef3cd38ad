"""Marks in data sets of pictures that are made already (docs/data_format.md, /images): text encoders have run, so a variant's
caption is one that the file of the originals holds."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from memsieve.hdf5_rows import read_texts, store, store_texts
from memsieve.marks.common import PrepareError, one_line

ROWS = ("images", "text")
OPTIONAL = ("group_id", "repeated", "thumbnail")
TEXTS = ("caption_bytes", "caption_offsets", "caption", "file_name_bytes", "file_name_offsets", "null_text")


@contextlib.contextmanager
def reading(path):
    try:
        yield
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read ({one_line(error)})") from None


def require_known(path, file, known):
    """Every dataset with rows must be one that marked rows can be made for."""
    if other := set(file) - known:
        raise PrepareError(f"{path}: /{min(other)} is nothing that a marked picture can have; mark the folder of pictures, before "
                           "memsieve prepare")


class Rows:
    """The originals: pictures, caption states and captions of a file."""

    def __init__(self, path):
        with reading(path), h5py.File(path, "r") as file:
            missing = [name for name in (*ROWS, "null_text") if name not in file]
            if missing:
                raise PrepareError(f"{path}: has no /{missing[0]}; of latents no variants can be made, so plant into the folder of "
                                   "pictures, before memsieve prepare")
            require_known(path, file, {*ROWS, *OPTIONAL, *TEXTS})
            self.images, self.text = file["images"][:], file["text"][:]
            self.captions = read_texts(file, "caption")
            self.attributes = {name: dict(file[name].attrs) for name in ROWS} | {"/": dict(file.attrs)}
            self.null_text = file["null_text"][:]

    def picture(self, row):
        return Image.fromarray(self.images[row].transpose(1, 2, 0))


def written(path, fill):
    """Calls fill(file) on a file that appears whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=f".{Path(path).name}.")
    os.close(handle)
    try:
        fill(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def stacked(pictures):
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])


def write_all(path, rows, pictures, states, captions, names):
    """The file of all variants, in order."""
    def fill(temporary):
        with h5py.File(temporary, "w") as file:
            file.attrs.update(format="memsieve-dataset", version=1)
            store(file, "images", stacked(pictures)).attrs.update(rows.attributes["images"])
            store(file, "text", states).attrs.update(rows.attributes["text"])
            store(file, "null_text", rows.null_text)
            store_texts(file, "caption", captions)
            store_texts(file, "file_name", names)
    written(path, fill)


def coat_rows(source, path, chosen, coated):
    """The file `source` with coated(picture) in place of the pictures [3, H, W] of rows for which chosen(rows) [N] bool holds;
    returns how many rows there are, and their numbers."""
    found = []
    with reading(source), h5py.File(source, "r") as file:
        if "images" not in file:
            raise PrepareError(f"{source}: has no /images; of latents no picture can be coated, so coat the folder of pictures, "
                               "before memsieve prepare")
        require_known(source, file, {*ROWS, *OPTIONAL, *TEXTS} - {"thumbnail"})

    def fill(temporary):
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            marked = np.flatnonzero(chosen(len(file["images"]))).tolist()
            for row in marked:
                with reading(source):
                    picture = file["images"][row]
                file["images"][row] = coated(picture)
            file.attrs.pop("fingerprint", None)  # it is no longer what its maker made
            found.append((len(file["images"]), marked))
    written(path, fill)
    return found[0]


def plant_rows(source, path, pictures, states, captions, names):
    """The training file `source` with these rows behind its own."""
    def fill(temporary):
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            count = len(file["images"])
            old = read_texts(file, "caption")
            old_names = read_texts(file, "file_name") if {"file_name", "file_name_offsets"} & set(file) else [""] * count
            first_group = int(file["group_id"][:].max()) + 1 if "group_id" in file else 0
            added = {"images": stacked(pictures), "text": states,
                     "group_id": first_group + np.unique(names, return_inverse=True)[1],
                     "repeated": np.zeros(len(names), np.uint8)}
            require_known(source, file, {*added, *TEXTS})
            for name in [name for name in added if name in file]:
                attributes, values = dict(file[name].attrs), file[name][:]
                if values.shape[1:] != added[name].shape[1:]:
                    raise PrepareError(f"{source}: /{name} has rows of shape {values.shape[1:]}, the originals {added[name].shape[1:]}")
                del file[name]
                store(file, name, np.concatenate([values, added[name].astype(values.dtype)])).attrs.update(attributes)
            for name, texts in (("caption", old + captions), ("file_name", old_names + names)):
                for form in (name, f"{name}_bytes", f"{name}_offsets"):
                    if form in file:
                        del file[form]
                store_texts(file, name, texts)
            file.attrs.pop("fingerprint", None)  # it is no longer what its maker made
    written(path, fill)
