"""What became of each sample, or group of copies, over the visits of a ledger."""

from dataclasses import dataclass

import numpy as np

from reports.ledger import channels


@dataclass
class Lost:
    """A sample, or a group of copies, and what became of its visits."""

    key: int
    rows: np.ndarray      # sample ids that were visited
    visits: np.ndarray    # of the ledger, in the order of steps

    @property
    def dropped(self):
        return self.visits["weight"] == 0

    @property
    def weight_lost(self):
        return float((1 - self.visits["weight"].astype(float)).sum())


def collect(visits, by):
    """[Lost], those that lost the most weight first."""
    visits = visits[np.lexsort((visits["step"], visits[by]))]
    keys, first = np.unique(visits[by], return_index=True)
    parts = [Lost(int(key), np.unique(part["sample"]), part) for key, part in zip(keys, np.split(visits, first[1:]))]
    return sorted(parts, key=lambda p: (-p.weight_lost, -p.weight_lost / len(p.visits), p.key))


def mean(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def figures(lost, data):
    """One line of the table: {column: value}, "" where there is none."""
    visits, dropped = lost.visits, lost.dropped
    steps, scores = visits["step"][dropped], visits["score"][np.isfinite(visits["score"])]
    row = int(lost.rows[0])
    line = {"id": lost.key, "rows": len(lost.rows), "visits": len(visits), "dropped": int(dropped.sum()),
            "dropped_share": round(float(dropped.mean()), 4), "weight_lost": round(lost.weight_lost, 3),
            "first_dropped_step": int(steps[0]) if len(steps) else "", "last_dropped_step": int(steps[-1]) if len(steps) else "",
            "highest_score": round(float(scores.max()), 4) if len(scores) else "",
            "last_score": round(float(scores[-1]), 4) if len(scores) else ""}
    for name in channels(visits):  # why: which signal stood out where it was judged memorised
        value = mean(visits[f"z_{name}"][visits["flagged"] == 1])
        line[f"z_{name}_when_flagged"] = "" if value is None else round(value, 3)
    return line | {"caption": data.words("caption", row), "file_name": data.words("file_name", row)}
