"""Where a run's checkpoints are."""

from pathlib import Path

from memsieve.reports.program import InputError


def latest_checkpoint(run):
    found = sorted(path for path in (Path(run) / "checkpoints").glob("step-*") if path.name[5:].isdecimal())
    if not found:
        raise InputError(f"{run}: no checkpoints/step-*: the last one is needed")
    return found[-1]
