"""The report as one picture for a README: training pictures above what the runs draw for their captions."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from memsieve.reports import figures
from memsieve.reports.plots import COLOURS
from memsieve.reports.words import percent

INK, SOFT = "#1d2126", "#5c6570"
LABELS = {"off": "drawn without\nthe filter", "on": "drawn with\nthe filter", "published": "drawn with the\npublished rule"}


def rows_of(comparison):
    """[(words, images [n, 3, H, W], scores [n] or None, gap above, colour)]: the first drawing of each caption."""
    count, rows = comparison.count, []
    runs = [(name, run) for name, run in comparison.runs() if name != "control"]
    kinds = [("repeated", range(count))]
    if len(comparison.prompts.images) > count:
        kinds.append(("ordinary", range(count, min(2 * count, len(comparison.prompts.images)))))
    for kind, which in kinds:
        which = list(which)
        rows.append((f"{kind} training\npictures", comparison.prompts.images[which], None, bool(rows), INK))
        for name, run in runs:
            rows.append((LABELS[name], run.last_samples[which, 0], comparison.scores[name][which, 0], False,
                         COLOURS[name]))
    return rows


def headlines(summary):
    """The picture's title and the line below it."""
    published = f", {percent(summary['copies_published'], 0)} with the published rule" if "copies_published" in summary else ""
    worked_out = " (interpolated)" if summary["control"]["source"] == "interpolated" else ""
    return (f"Drawings that copy: {percent(summary['copies_off'], 0)} without{published}, "
            f"{percent(summary['copies_on'], 0)} with the filter",
            f"Control, the plain run at as many visits of the repeated pictures as the filter kept: "
            f"{percent(summary['copies_control'], 0)}{worked_out}.  Visits dropped with the filter: "
            f"{percent(summary['repeated_dropped'])} of repeated, {percent(summary['ordinary_dropped'])} of ordinary pictures.")


def render(comparison, summary):
    """-> PNG bytes, 1600 pixels wide."""
    rows = rows_of(comparison)
    columns = max(len(images) for _, images, _, _, _ in rows)
    cell, gap, left, head = 1.0, 0.35, 2.3, 1.2
    width = left + columns * cell + 0.1
    height = head + len(rows) * cell + gap * sum(row[3] for row in rows) + 0.5
    figure = plt.figure(figsize=(16, 16 * height / width), dpi=100, facecolor="white")
    axis = figure.add_axes([0, 0, 1, 1])
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    for y, size, weight, colour, words in zip((0.4, 0.82), (18, 12.5), ("bold", "normal"), (INK, SOFT), headlines(summary)):
        axis.text(0.15, y, words, fontsize=size, color=colour, va="center", fontweight=weight)
    top = head
    for words, images, scores, spaced, colour in rows:
        top += gap if spaced else 0.0
        axis.text(left - 0.15, top + cell / 2, words, fontsize=13, color=colour, ha="right", va="center")
        for column, pixels in enumerate(images):
            x = left + column * cell
            axis.imshow(pixels.transpose(1, 2, 0), extent=(x + 0.05, x + 0.95, top + 0.95, top + 0.05), interpolation="nearest",
                        aspect="auto")
            if scores is not None and scores[column] > figures.COPY:
                axis.add_patch(Rectangle((x + 0.03, top + 0.03), 0.94, 0.94, fill=False, edgecolor=COLOURS["off"], linewidth=2.5))
        top += cell
    axis.text(left, top + 0.25, f"framed: a copy, correlation > {figures.COPY} with the training picture. First drawing of each caption; the "
              f"shares count all {np.size(comparison.scores['on'][:comparison.count])}.", fontsize=11.5, color=SOFT, va="center")
    axis.set(xlim=(0, width), ylim=(height, 0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
