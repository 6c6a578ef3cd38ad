"""Reads what was trained on: data sets (docs/data_format.md), and lists of pictures."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from memsieve.hdf5_rows import count_texts, read_text, read_texts
from memsieve.reports.files import open_h5
from memsieve.reports.program import InputError


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


class PictureList:
    """The same of a text file with the path of a picture on each line, those of samples 0, 1, ...; or a sample's id, a tab, and its path.
    The caption is what a .txt file beside the picture holds."""

    SIDE = 64  # pixels

    def __init__(self, path):
        self.path, self.paths, with_ids = path, {}, False
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InputError(f"{path}: cannot be read as a list of pictures: {reason}") from None
        for number, line in enumerate(lines):
            name, tab, rest = line.partition("\t")
            if tab and not name.isdecimal():
                raise InputError(f"{path}:{number + 1}: begins with '{name}', which is no sample's id; write the id, a tab, and the path")
            with_ids |= bool(tab)
            if line.strip():
                self.paths[int(name) if tab else number] = Path(path).parent / (rest if tab else line).strip()
        self.size = None if with_ids else max(self.paths, default=-1) + 1  # a list with ids need not have all of them

    def words(self, name, row):
        picture = self.paths.get(row)
        if picture is None or name == "file_name":
            return "" if picture is None else picture.name
        caption = picture.with_suffix(".txt")
        return caption.read_text(encoding="utf-8", errors="replace").strip() if caption.is_file() else ""

    def picture(self, row):
        from PIL import Image
        try:
            with Image.open(self.paths[row]) as picture:
                picture.thumbnail((self.SIDE, self.SIDE))
                return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        except (KeyError, OSError, ValueError, Image.DecompressionBombError):
            return None


class NoData:
    """Of a run that tells nothing of it."""

    path, size = None, None

    def words(self, name, row):
        return ""

    def picture(self, row):
        return None


def open_data(path):
    """Captions, file names and small pictures by sample id, of a data set or a list of pictures. InputError says why not."""
    return PictureList(path) if Path(path).is_file() and not h5py.is_hdf5(path) else OpenDataSet(path)
