"""Reads ledgers (docs/ledger_format.md), also of a run that goes on. Needs h5py; frames need pandas."""
from pathlib import Path

from memsieve.errors import DataError

KINDS = ("training", "held_out", "passed_over", "look")
TRAINING, HELD_OUT, PASSED_OVER, LOOK = range(4)


def _file(run):
    path = Path(run)
    return path / "ledger.h5" if path.is_dir() else path


def visits(run):
    """All visits as a numpy structured array, one element each, fields as in docs/ledger_format.md. `run`: a ledger, or a run folder
    that holds `ledger.h5`. Raises DataError."""
    import h5py
    path = _file(run)
    try:
        try:
            file = h5py.File(path, "r", libver="latest")  # a damaged file says so, which swmr would wait for
        except OSError as error:
            if "already open" not in str(error):
                raise
            file = h5py.File(path, "r", libver="latest", swmr=True)
        with file:
            if "visits" not in file:
                raise DataError(f"{path}: no /visits: not a ledger (docs/ledger_format.md)")
            return file["visits"][:]
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as a ledger: {why}") from None


def frame(run):
    """All visits as a pandas frame, `kind` as a categorical of training, held_out, passed_over, look."""
    import pandas
    table = pandas.DataFrame(visits(run))
    table["kind"] = pandas.Categorical.from_codes(table["kind"].astype(int), KINDS)
    return table


def samples(run):
    """A line for each training sample, those that lost most first: columns `visits` (passed-over ones among them), `dropped` (weight 0),
    `share` (of the visits), `first` and `last` step dropped (NaN = never), `score` (evidence at the last visit that has one), `group`."""
    import pandas
    table = frame(run)
    table = table[table["kind"].isin(["training", "passed_over"])].sort_values("step", kind="stable")
    lost = table[table["weight"] == 0].groupby("sample")["step"]
    by_sample = table.groupby("sample")
    lines = pandas.DataFrame({
        "group": by_sample["group"].first(), "visits": by_sample.size(), "dropped": lost.count(), "first": lost.min(), "last": lost.max(),
        "score": by_sample["score"].last()})
    lines["dropped"] = lines["dropped"].fillna(0).astype(int)
    lines.insert(3, "share", lines["dropped"] / lines["visits"])
    return lines.sort_values(["dropped", "share"], ascending=False)
