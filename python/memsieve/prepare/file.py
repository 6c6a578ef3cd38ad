"""Files of a data set that is being made: safe against being stopped at any moment, continued where they were."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from memsieve.hdf5_rows import SealedRows, store, store_texts
from memsieve.prepare.pictures import OptionError

OTHER = {"version": "another version of this program", "sources": "other pictures or captions",
         "pipeline_files": "another pipeline", "prompts": "other prompts"}
FLUSH_EVERY = 16  # batches that a stopped run may have to do again after a power cut


class RowFile:
    """An HDF5 file with room for all its rows, filled in place.

    Its columns have a chunk with a checksum for each row, all allocated when it is made, so that the rest of the work is
    writing bytes at known places: the file is sound HDF5 at every moment, whatever stops the program.
    """

    @staticmethod
    def make(path, columns, rows, attributes, fixed, unwritten=()):
        """`columns`: {name: (shape of a row, dtype)} to be filled, but those in `unwritten`, which stay zeros and take no room;
        `fixed`: {name: array or list of str} known now; `attributes`: {object: {name: value}}."""
        temporary = f"{path}.new"
        with h5py.File(temporary, "w") as file:
            for name, (shape, dtype) in columns.items():
                how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                how.set_chunk((1, *shape))
                how.set_fletcher32()
                how.set_alloc_time(h5py.h5d.ALLOC_TIME_INCR if name in unwritten else h5py.h5d.ALLOC_TIME_EARLY)
                how.set_obj_track_times(False)
                space = h5py.h5s.create_simple((rows, *shape))
                h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype), logical=True), space, how)
            for name, values in fixed.items():
                (store_texts if isinstance(values, list) else store)(file, name, values)
            for owner, values in attributes.items():
                file[owner].attrs.update(values)
        os.replace(temporary, path)

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "r") as file:
            self.columns = {name: (chunk_places(data), data.shape, data.dtype, SealedRows(data.shape[1:], data.dtype))
                            for name, data in file.items() if data.chunks and data.chunks[0] == 1 and data.ndim > 1}
        self.bytes = os.open(path, os.O_RDWR)

    def write(self, first, values):
        """`values`: {column: array [B, ...]} of rows first .. first + B - 1."""
        for name, array in values.items():
            places, shape, dtype, sealed = self.columns[name]
            if (array.shape[1:] != shape[1:] or array.dtype != dtype or first + len(array) > shape[0]
                    or not places[first:first + len(array)].all()):
                raise ValueError(f"/{name}: rows {first} on of {array.dtype} {array.shape} do not fit {dtype} {shape}")
            for row, place in zip(array, places[first:].tolist()):
                data = memoryview(sealed.bytes_of(row))
                while data:
                    written = os.pwrite(self.bytes, data, place)
                    data, place = data[written:], place + written

    def flush(self):
        os.fsync(self.bytes)

    def close(self):
        os.fsync(self.bytes)
        os.close(self.bytes)


def chunk_places(data):
    """Where in the file the chunk of each row is; int64 [rows]."""
    places = np.zeros(len(data), np.int64)

    def note(chunk):
        places[chunk.chunk_offset[0]] = chunk.byte_offset

    data.id.chunk_iter(note)
    return places


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
