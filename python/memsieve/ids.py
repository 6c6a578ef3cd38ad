"""Stable sample ids for data sets and loops that drop the index of a sample on the way to the batch."""
import hashlib
from collections.abc import Callable

import torch

KEY = "sample_id"


def id_of(name, dataset_size: int):
    """The id in [0, dataset_size) of a sample that has a name (a file's path, say) and no index: the same in every process and
    run. Two names in n collide with a probability of about n^2 / (2 dataset_size), and are then judged as one sample: make the
    sieve with a `dataset_size` of some hundred times as many as there are names, each of which costs some bytes, and with
    `samples` = how many names there are.

    `name`: str, bytes or path-like; a list or tuple of them gives an int64 tensor [B] on the CPU.
    """
    if isinstance(name, (list, tuple)):
        return torch.tensor([id_of(one, dataset_size) for one in name], dtype=torch.int64)
    data = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % dataset_size


class WithIds(torch.utils.data.Dataset):
    """A map-style data set whose samples carry their index.

    A sample that is a dict gets the key "sample_id"; a tuple or list gets one element more, at its end; anything else becomes
    the pair (sample, index). For a collate function that drops what it does not know, see `with_ids`.
    """

    def __init__(self, dataset: torch.utils.data.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self._with_id(self.dataset[index], index)

    def __getitems__(self, indices: list):
        """A batch at once, which torch's loader asks for where there is such a method: datasets' Dataset has one."""
        several = getattr(self.dataset, "__getitems__", None)
        samples = several(indices) if several is not None else [self.dataset[index] for index in indices]
        return [self._with_id(sample, index) for sample, index in zip(samples, indices)]

    def _with_id(self, sample, index):
        index = int(index) % len(self.dataset)  # -1 is the last sample, like the data set's own
        if isinstance(sample, dict):
            return {**sample, KEY: index}
        if isinstance(sample, list):
            return [*sample, index]
        if isinstance(sample, tuple) and not hasattr(sample, "_fields"):
            return (*sample, index)
        return sample, index

    def __getattr__(self, name):
        if name == "dataset":  # not yet there: while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)


def with_ids(collate: Callable[[list], dict]) -> Callable[[list], dict]:
    """A collate function for samples of `WithIds` that are dicts: `collate` gets them as they are, and its batch, a dict, the key
    "sample_id", int64 [B] on the CPU."""

    def collate_with_ids(samples):
        batch = collate(samples)
        batch[KEY] = torch.tensor([sample[KEY] for sample in samples], dtype=torch.int64)
        return batch

    return collate_with_ids
