"""Files of a data set that is being made: safe against being stopped at any moment, continued where they were."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from prepare.pictures import OptionError

OTHER = {"sources": "other pictures or captions", "pipeline_files": "another pipeline", "prompts": "other prompts"}
FLUSH_EVERY = 16  # batches that a stopped run may have to do again after a power cut


class RowFile:
    """An HDF5 file with room for all its rows, filled in place.

    Its arrays are contiguous and allocated when it is made, so that the rest of the work is writing bytes at known places:
    the file is sound HDF5 at every moment, whatever stops the program.
    """

    @staticmethod
    def make(path, columns, rows, attributes, fixed):
        """`columns`: {name: (shape of a row, dtype)} to be filled; `fixed`: {name: array or list of str} known now;
        `attributes`: {object: {name: value}}."""
        temporary = f"{path}.new"
        with h5py.File(temporary, "w") as file:
            for name, (shape, dtype) in columns.items():
                how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                how.set_layout(h5py.h5d.CONTIGUOUS)
                how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                how.set_obj_track_times(False)
                space = h5py.h5s.create_simple((rows, *shape))
                h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype), logical=True), space, how)
            for name, values in fixed.items():
                text = isinstance(values, list)
                file.create_dataset(name, data=values, dtype=h5py.string_dtype() if text else None)
            for owner, values in attributes.items():
                file[owner].attrs.update(values)
        os.replace(temporary, path)

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "r") as file:
            self.places = {name: (data.id.get_offset(), data.shape, data.dtype) for name, data in file.items()
                           if data.dtype.kind in "fu"}
        self.bytes = os.open(path, os.O_RDWR)

    def write(self, first, values):
        """`values`: {column: array [B, ...]} of rows first .. first + B - 1."""
        for name, array in values.items():
            offset, shape, dtype = self.places[name]
            if array.shape[1:] != shape[1:] or array.dtype != dtype or first + len(array) > shape[0]:
                raise ValueError(f"/{name}: rows {first} on of {array.dtype} {array.shape} do not fit {dtype} {shape}")
            data, place = memoryview(np.ascontiguousarray(array)).cast("B"), offset + first * array[0].nbytes
            while data:
                written = os.pwrite(self.bytes, data, place)
                data, place = data[written:], place + written

    def flush(self):
        os.fsync(self.bytes)

    def close(self):
        os.fsync(self.bytes)
        os.close(self.bytes)


class Workshop:
    """The folder `.partial` in which a set is made; it goes when the set is finished."""

    def __init__(self, out, settings, resume):
        self.out, self.folder = Path(out), Path(out) / ".partial"
        kept = self.folder / "settings.json"
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            self.keep("settings.json", settings)
        elif not resume:
            raise OptionError(f"{self.out} holds an unfinished set; continue it with --resume, or remove {self.folder}")
        elif not kept.exists():
            raise OptionError(f"{self.folder} is no unfinished set of this program (no settings.json); remove it")
        else:
            refuse_other(f"{self.out}: the unfinished set", json.loads(kept.read_text()), settings)

    def path(self, name):
        return self.folder / name

    def keep(self, name, value):
        temporary = self.path(name + ".new")
        temporary.write_text(json.dumps(value))
        os.replace(temporary, self.path(name))

    def kept(self, name, otherwise):
        return json.loads(self.path(name).read_text()) if self.path(name).exists() else otherwise

    def finish(self, names):
        """Puts the files in place, the last named last, and goes."""
        for name in names:
            if self.path(name).exists():
                os.replace(self.path(name), self.out / name)
        shutil.rmtree(self.folder)


def refuse_other(what, then, now):
    """OptionError naming the first setting that differs."""
    for name in [*now, *then]:
        if then.get(name) != now.get(name):
            if name in OTHER:
                raise OptionError(f"{what} was made from {OTHER[name]}; remove it or name another --out")
            option = "--" + name.replace("_", "-")
            raise OptionError(f"{what} was made with {option} {then.get(name)}, not {now.get(name)}; give the same, or name "
                               "another --out")


def finished(out, names, settings):
    """Whether all files are there and were made with `settings`. OptionError if one was made with others."""
    there = [Path(out) / name for name in names if (Path(out) / name).exists()]
    for path in there:
        try:
            with h5py.File(path, "r") as file:
                made_with = json.loads(file.attrs.get("prepared_with", "null"))
        except (OSError, ValueError):
            made_with = None
        if made_with is None:
            raise OptionError(f"{path} exists and was not made by this program; name another --out")
        refuse_other(str(path), made_with, settings)
    return len(there) == len(names)
