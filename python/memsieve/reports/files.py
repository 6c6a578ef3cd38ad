"""Files: HDF5 is opened with an error that says why not, and what is written appears whole."""

import os

import h5py

from memsieve.reports.program import InputError


def open_h5(path, **options):
    """For reading, without a lock: a run may still be writing its ledger."""
    try:
        try:
            return h5py.File(path, "r", locking=False, **options)
        except OSError as error:
            if "locking flag" not in str(error):
                raise
            return h5py.File(path, "r", **options)  # this process has it open, with a lock
    except OSError as error:
        reason = "no such file" if not os.path.exists(path) else str(error).split("(")[0].strip()
        raise InputError(f"{path}: cannot be read as HDF5: {reason}") from None


def replace_file(path, content):
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
