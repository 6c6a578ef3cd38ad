"""Reads ledgers (docs/ledger_format.md), also of a run that goes on."""

import sys

import numpy as np

from reports.files import open_h5
from reports.program import InputError

TRAINING, HELD_OUT, PASSED_OVER, LOOK = 0, 1, 2, 3  # the column `kind`


def read_ledger(path):
    """All visits, a structured array with one element for each; those that are damaged are left out, and stderr says how many."""
    with _open_ledger(path) as file:
        try:
            if "visits" not in file:
                raise InputError(f"{path}: no /visits: not a ledger (docs/ledger_format.md)")
            return _rows(file["visits"], path)
        except (OSError, KeyError, RuntimeError) as error:  # whichever h5py makes of HDF5's
            raise InputError(f"{path}: is damaged: {str(error.args[0]).split('(')[0].strip()}") from None


def _open_ledger(path):
    # What a killed run has left, or one still writes, opens for a reader beside a writer alone. Others do not open so:
    # such a reader waits for damaged metadata to become sound, as if they were being written.
    try:
        return open_h5(path, libver="latest")
    except InputError as error:
        if "already open" not in str(error.__context__):
            raise
    return open_h5(path, libver="latest", swmr=True)


def _rows(visits, path):
    try:
        return visits[:]
    except OSError:
        if visits.chunks is None:
            raise
    chunk, parts = visits.chunks[0], [visits[:0]]
    for begin in range(0, len(visits), chunk):
        try:
            parts.append(visits[begin:begin + chunk])
        except OSError:
            continue
    rows = np.concatenate(parts)
    print(f"{path}: {len(visits) - len(rows)} of {len(visits)} visits are damaged and left out", file=sys.stderr)
    return rows


def of_training_rows(visits):
    """Visits of training samples, those that were passed over among them: these have a weight of 0, like dropped ones."""
    return visits[np.isin(visits["kind"], (TRAINING, PASSED_OVER))]


def of_held_out_rows(visits):
    return visits[visits["kind"] == HELD_OUT]


def channels(visits):
    """Names of the configured filters, in the order of their columns."""
    return [name[2:] for name in visits.dtype.names if name.startswith("z_")]


def completed(ledger_step):
    """Steps done once the visits of `ledger_step` count: the ledger may number steps from 0 or from 1."""
    steps = ledger_step.astype(np.int64)
    return steps + 1 if len(steps) and steps.min() == 0 else steps


def completed_without_passing_over(visits):
    """completed() of a run that trains on the same stream of samples and passes over none."""
    passed = visits["kind"] == PASSED_OVER
    if not passed.any():
        return completed(visits["step"])
    rows = np.unique(visits["step"][~passed], return_counts=True)[1].max()
    place = np.empty(len(visits), dtype=np.int64)
    place[np.argsort(visits["step"], kind="stable")] = np.arange(len(visits))
    return place // rows + 1
