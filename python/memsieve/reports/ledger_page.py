"""The samples that lost most as one HTML page: what templates/ledger.html.j2 shows."""

import numpy as np

from memsieve.ledger import channels
from memsieve.reports import page

CHART = (220, 48)  # pixels


def chart(visits, last_step):
    """Points of the score over the steps and of the level for dropping, in pixels; None if it was never measured."""
    width, height = CHART
    visits = visits[np.isfinite(visits["score"])]
    if not len(visits):
        return None
    step, score, level = (visits[name].to_numpy(float) for name in ("step", "score", "threshold"))
    known = np.isfinite(level)
    shown = np.concatenate([score, level[known]])
    low, high = shown.min(), max(shown.max(), shown.min() + 1e-6)
    x = 3 + (width - 6) * step / max(last_step, 1)

    def y(values):
        return height - 3 - (height - 6) * (values - low) / (high - low)

    return {"width": width, "height": height, "low": low, "high": high, "line": list(zip(x, y(score))),
            "level": list(zip(x[known], y(level[known]))), "dots": list(zip(x, y(score), visits["weight"]))}


def render(run, visits, samples, lines, data, top, by):
    """visits: ledger.training(run); samples: ledger.samples(visits, by); lines: the same order, what the table says of each. -> HTML."""
    losers = samples[samples["weight_lost"] > 0]
    last_step, lost, tenth = int(visits["step"].max()), samples["weight_lost"].sum(), max(1, len(samples) // 10)
    shown = losers.index[:top]
    parts = dict(list(visits[visits[by].isin(shown)].groupby(by)))
    words = lines.loc[shown].astype(object)
    rows = []
    for key, line in words.where(words.notna(), "").to_dict("index").items():
        sample = int(samples.loc[key, "sample"])
        rows.append({"id": key, "line": line, "sample": sample, "pixels": data.picture(sample), "chart": chart(parts[key], last_step),
                     "why": [(name, z) for name in channels(visits.columns) if (z := line[f"z_{name}_when_flagged"]) != ""]})
    return page.render(
        "ledger.html.j2", title=f"Dropped in {run}", run=run, data=data.path, by=by, rows=rows, samples=len(samples),
        losers=len(losers), visits=len(visits), dropped=int((visits["weight"] == 0).sum()), last_step=last_step,
        tenth_share=samples["weight_lost"].iloc[:tenth].sum() / lost if lost else None)
