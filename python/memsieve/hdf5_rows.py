"""How rows are stored in HDF5 (docs/data_format.md): in chunks that carry checksums, and texts without HDF5's heap."""

import h5py
import numpy as np

CHUNK = 1 << 16  # bytes; smaller rows share a chunk


def store(file, name, values):
    """Writes an array in chunks of whole rows, each with a checksum (fletcher32), and returns the dataset."""
    values = np.asarray(values)
    if not values.size or not values.ndim:  # nothing to divide into chunks
        return file.create_dataset(name, data=values)
    rows = min(max(CHUNK // values[0].nbytes, 1), len(values))
    return file.create_dataset(name, data=values, chunks=(rows, *values.shape[1:]), fletcher32=True)


def store_texts(file, name, texts):
    """Writes texts as NAME_bytes, uint8: their UTF-8 one after the other; and NAME_offsets, int64 [N + 1]: where each begins,
    and where the last one ends."""
    parts = [text.encode() for text in texts]
    store(file, f"{name}_bytes", np.frombuffer(b"".join(parts), np.uint8))
    store(file, f"{name}_offsets", np.cumsum([0, *map(len, parts)], dtype=np.int64))


def count_texts(file, name):
    """How many texts NAME the file has, in either form; None if it has none."""
    if f"{name}_offsets" in file:
        return len(file[f"{name}_offsets"]) - 1
    return len(file[name]) if name in file else None


def read_text(file, name, row):
    """Text `row`, from bytes and offsets or from a dataset of variable-length strings, which older files have."""
    if f"{name}_offsets" in file:
        first, end = file[f"{name}_offsets"][row:row + 2]
        return file[f"{name}_bytes"][first:end].tobytes().decode(errors="replace")
    value = file[name][row]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_texts(file, name):
    """All texts, of either form."""
    if f"{name}_offsets" not in file:
        return [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in file[name][:]]
    every, offsets = file[f"{name}_bytes"][:].tobytes(), file[f"{name}_offsets"][:]
    return [every[first:end].decode(errors="replace") for first, end in zip(offsets, offsets[1:])]


class SealedRows:
    """Rows in the form that they have in a file with a chunk and a checksum for each: HDF5 itself makes it, in memory."""

    def __init__(self, shape, dtype):
        self.file = h5py.File(f"sealed rows {id(self)}", "w", driver="core", backing_store=False)
        self.data = self.file.create_dataset("row", (1, *shape), dtype, chunks=(1, *shape), fletcher32=True)

    def bytes_of(self, row):
        self.data[0] = row
        return self.data.id.read_direct_chunk((0,) * self.data.ndim)[1]
