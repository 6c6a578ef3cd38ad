"""The samples that lost most as one HTML page: what tools/templates/ledger.html.j2 shows."""

import numpy as np

from reports import page
from reports.ledger import channels

CHART = (220, 48)  # pixels


def chart(lost, last_step):
    """Points of the score over the steps and of the level for dropping, in pixels; None if it was never measured."""
    width, height = CHART
    visits = lost.visits[np.isfinite(lost.visits["score"])]
    if not len(visits):
        return None
    score, level = visits["score"].astype(float), visits["threshold"].astype(float)
    known = np.isfinite(level)
    shown = np.concatenate([score, level[known]])
    low, high = shown.min(), max(shown.max(), shown.min() + 1e-6)
    x = 3 + (width - 6) * visits["step"] / max(last_step, 1)

    def y(values):
        return height - 3 - (height - 6) * (values - low) / (high - low)

    return {"width": width, "height": height, "low": low, "high": high, "line": list(zip(x, y(score))),
            "level": list(zip(x[known], y(level[known]))), "dots": list(zip(x, y(score), visits["weight"]))}


def render(run, parts, lines, data, top, by):
    """`parts` and `lines`: what reports.losses makes, in one order. -> HTML."""
    visits = np.concatenate([part.visits for part in parts])
    losers = [part for part in parts if part.weight_lost > 0]
    last_step, lost = int(visits["step"].max()), sum(part.weight_lost for part in parts)
    tenth = max(1, len(parts) // 10)
    names = channels(visits)
    rows = [{"line": line, "sample": part.rows[0], "pixels": data.picture(int(part.rows[0])), "chart": chart(part, last_step),
             "why": [(name, line[f"z_{name}_when_flagged"]) for name in names if line[f"z_{name}_when_flagged"] != ""]}
            for part, line in zip(losers[:top], lines)]
    return page.render(
        "ledger.html.j2", title=f"Dropped in {run}", run=run, data=data.path, by=by, rows=rows, samples=len(parts),
        losers=len(losers), visits=len(visits), dropped=int((visits["weight"] == 0).sum()), last_step=last_step,
        tenth_share=sum(part.weight_lost for part in parts[:tenth]) / lost if lost else None)
