"""Reads ledgers (docs/ledger_format.md), also of a run that goes on."""

import numpy as np

from reports.files import open_h5
from reports.program import InputError

TRAINING, HELD_OUT, PASSED_OVER, LOOK = 0, 1, 2, 3  # the column `kind`


def read_ledger(path):
    """All visits, a structured array with one element for each."""
    with open_h5(path, libver="latest", swmr=True) as file:
        if "visits" not in file:
            raise InputError(f"{path}: no /visits: not a ledger (docs/ledger_format.md)")
        return file["visits"][:]


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
