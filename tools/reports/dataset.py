"""Reads data sets (docs/data_format.md)."""

from dataclasses import dataclass

import numpy as np

from hdf5_rows import count_texts, read_text, read_texts
from reports.files import open_h5
from reports.program import InputError


@dataclass
class DataSet:
    """A data set that knows which of its rows are repeated: what the report needs of it."""

    images: np.ndarray     # uint8 [N, 3, H, W]
    captions: list
    group: np.ndarray      # int64 [N]
    repeated: np.ndarray   # bool [N], the truth

    @classmethod
    def read(cls, path):
        with open_h5(path) as file:
            for name in ("images", "caption", "repeated"):
                if name not in file and count_texts(file, name) is None:
                    raise InputError(f"{path}: no /{name}: the report needs a data set with images, captions and the truth")
            count = len(file["images"])
            group = file["group_id"][:] if "group_id" in file else np.arange(count)
            return cls(file["images"][:], read_texts(file, "caption"), group, file["repeated"][:].astype(bool))


class OpenDataSet:
    """Captions, file names and small pictures of any data set, as far as it has them, read row by row."""

    def __init__(self, path):
        self.path, self.file = path, open_h5(path)
        captions = count_texts(self.file, "caption")
        if captions is None and "text" not in self.file:
            raise InputError(f"{path}: no /caption: not a memsieve data set (docs/data_format.md)")
        self.size = len(self.file["text"]) if captions is None else captions

    def words(self, name, row):
        return "" if count_texts(self.file, name) is None else read_text(self.file, name, row)

    def picture(self, row):
        """uint8 [3, H, W], or None: latents alone cannot be shown."""
        if "thumbnail" in self.file:
            return self.file["thumbnail"][row].transpose(2, 0, 1)
        if "images" in self.file:
            return self.file["images"][row]
        return None
