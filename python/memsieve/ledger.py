"""Reads ledgers (docs/ledger_format.md) of any trainer, also of a run that goes on. Needs h5py; frames need pandas.

Wherever `run` is asked for, it is the path of a ledger, or of a run folder that holds `ledger.h5`. DataError says in one line why it
cannot be read.
"""
import warnings
from pathlib import Path

import numpy as np

from memsieve.errors import DataError
from memsieve.reports.files import open_h5

KINDS = ("training", "held_out", "passed_over", "look")
TRAINING, HELD_OUT, PASSED_OVER, LOOK = range(4)


def path_of(run):
    """The path of the ledger that `run` means."""
    path = Path(run)
    return path / "ledger.h5" if path.is_dir() else path


def visits(run):
    """All visits as a numpy structured array [visits], with the fields of docs/ledger_format.md. Damaged chunks are left out, and a
    warning says how many visits that is."""
    path = path_of(run)
    with _open(path) as file:
        try:
            rows = _sound_rows(file["visits"], path) if "visits" in file else None
        except (OSError, KeyError, RuntimeError) as error:  # whichever h5py makes of HDF5's
            raise DataError(f"{path}: is damaged: {str(error.args[0]).split('(')[0].strip()}") from None
    if rows is None:
        raise DataError(f"{path}: no /visits: not a ledger (docs/ledger_format.md)")
    return rows


def _open(path):
    # What a killed run has left, or one still writes, opens for a reader beside a writer alone. Others do not open so:
    # such a reader waits for damaged metadata to become sound, as if they were being written.
    try:
        return open_h5(path, libver="latest")
    except DataError as error:
        if "already open" not in str(error.__context__):
            raise
    return open_h5(path, libver="latest", swmr=True)


def _sound_rows(rows, path):
    try:
        return rows[:]
    except OSError:
        if rows.chunks is None:
            raise
    chunk, parts = rows.chunks[0], [rows[:0]]
    for begin in range(0, len(rows), chunk):
        try:
            parts.append(rows[begin:begin + chunk])
        except OSError:
            continue
    found = np.concatenate(parts)
    warnings.warn(f"{path}: {len(rows) - len(found)} of {len(rows)} visits are damaged and left out", stacklevel=4)
    return found


# ---- of what `visits` gave -------------------------------------------------------------------------------------------------


def of_training_rows(visits):
    """Visits of training samples, those that were passed over among them: these have a weight of 0, like dropped ones."""
    return visits[np.isin(visits["kind"], (TRAINING, PASSED_OVER))]


def of_held_out_rows(visits):
    return visits[visits["kind"] == HELD_OUT]


def channels(columns):
    """Names of the configured filters, in the order of their columns. `columns`: names of fields, or of a frame's columns."""
    return [name[2:] for name in columns if name.startswith("z_")]


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


# ---- frames ----------------------------------------------------------------------------------------------------------------


def frame(run):
    """All visits as a pandas frame, a row each, `kind` as a categorical of training, held_out, passed_over, look."""
    import pandas
    table = pandas.DataFrame(visits(run))
    table["kind"] = pandas.Categorical.from_codes(table["kind"].astype(int), KINDS)
    return table


def training(run):
    """frame() of the training samples' visits, passed-over ones among them, in the order of steps. `run` may be such a frame, too."""
    table = run if hasattr(run, "columns") else frame(run)
    return table[table["kind"].isin([KINDS[TRAINING], KINDS[PASSED_OVER]])].sort_values("step", kind="stable")


def samples(run, by="sample"):
    """What became of each training sample: a pandas frame, those that lost the most weight first. With `by="group"`, of each group of
    copies. `run` may be a frame of `frame` or `training`, too.

    Its index, `id`, is the sample (or group); columns:
        sample                 one of them, the least id
        group                  its group of copies
        rows                   samples of it that were visited
        visits                 passed-over ones among them
        dropped                visits with weight 0
        dropped_share          of the visits
        weight_lost            sum of 1 - weight
        first_dropped_step, last_dropped_step    Int64, <NA> = never
        highest_score, last_score                evidence, of the visits that have one; NaN = none has
        z_F_when_flagged       mean z-score of filter F over the visits judged memorised; NaN = none was
    """
    import pandas
    table = training(run)
    grouped, lost = table.groupby(by), table[table["weight"] == 0].groupby(by)["step"]
    score = table["score"].where(np.isfinite(table["score"])).groupby(table[by])
    lines = pandas.DataFrame({
        "sample": grouped["sample"].min(), "group": grouped["group"].min(), "rows": grouped["sample"].nunique(), "visits": grouped.size(),
        "dropped": lost.size(), "dropped_share": 0.0, "weight_lost": (1 - table["weight"].astype(float)).groupby(table[by]).sum(),
        "first_dropped_step": lost.min(), "last_dropped_step": lost.max(), "highest_score": score.max(), "last_score": score.last()})
    lines["dropped"] = lines["dropped"].fillna(0).astype(int)
    lines["dropped_share"] = lines["dropped"] / lines["visits"]
    for name in ("first_dropped_step", "last_dropped_step"):
        lines[name] = lines[name].astype("Int64")
    flagged = table[table["flagged"] == 1]
    for name in channels(table.columns):
        z = flagged[f"z_{name}"].astype(float)
        lines[f"z_{name}_when_flagged"] = z.where(np.isfinite(z)).groupby(flagged[by]).mean()
    order = np.lexsort((lines.index, -lines["weight_lost"] / lines["visits"], -lines["weight_lost"]))
    return lines.iloc[order].rename_axis("id")
