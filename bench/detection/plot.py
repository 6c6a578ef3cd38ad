"""The picture of docs/detection.md: copies, and visits dropped, for each scenario."""

import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from . import book, shares
from .scenarios import SCENARIOS

OFF, ON, CONTROL = "#cf4f3e", "#2f86c8", "#8a8f98"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "memsieve", "axes.grid": True,
         "grid.alpha": 0.2, "legend.frameon": False, "svg.fonttype": "none", "font.family": "sans-serif"}


def dots(axis, place, values, **style):
    known = [value for value in values if value is not None]
    axis.plot([place] * len(known), known, linestyle="none", alpha=0.85, **style)


def names_with(found, rule):
    return [name for name, scenario in SCENARIOS.items() if scenario.reported and book.Group(found, name, rule).runs]


def copies(axis, found):
    names = [name for name in names_with(found, "off") if book.Group(found, name, "off").runs[0]["repeated_rows"]]
    for place, name in enumerate(names):
        for rule, colour, marker in (("off", OFF, "o"), ("default", ON, "o")):
            values = book.Group(found, name, rule).values(lambda run: shares.value(book.of_drawings(book.last_copies(run))))
            dots(axis, place, values, color=colour, marker=marker)
        dots(axis, place, book.Group(found, name, "default").controls(), color=CONTROL, marker="D", fillstyle="none")
    for colour, marker, fill, label in ((OFF, "o", "full", "no filter"), (CONTROL, "D", "none", "control"), (ON, "o", "full", "memsieve")):
        axis.plot([], [], color=colour, marker=marker, fillstyle=fill, linestyle="none", label=label)
    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axis.set_ylabel("drawings that are copies")
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axis.set_ylim(-0.03, 1.03)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handletextpad=0.2, columnspacing=1)


def by_quarter(axis, found):
    for name in names_with(found, "default"):
        group = book.Group(found, name, "default")
        values = [shares.value(group.dropped("repeated", "quarters", q)) for q in range(4)]
        if None not in values:
            axis.plot(range(1, 5), values, marker="o", markersize=3, label=name)
    axis.set_xticks(range(1, 5))
    axis.set_xlabel("quarter of the run")
    axis.set_ylabel("repeated visits dropped")
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axis.set_ylim(0, 1.03)
    if axis.lines:
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, handlelength=1, columnspacing=1)


def ordinary(axis, found):
    names = names_with(found, "default")
    axis.axhspan(0.003, 0.015, color=CONTROL, alpha=0.2, linewidth=0, label="promised: 0.3 to 1.5%")
    for place, name in enumerate(names):
        group = book.Group(found, name, "default")
        dots(axis, place, group.dropped_by_seed("ordinary", "all"), color=ON, marker="o")
        end = shares.interval(group.dropped("ordinary", "all"))
        if end:
            axis.plot([place, place], end, color=ON, linewidth=1)
    axis.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axis.set_ylabel("ordinary visits dropped")
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=1))
    axis.set_ylim(0, max(0.02, *(1.1 * value for line in axis.lines for value in line.get_ydata()), 0.02))
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0))


def svg(found):
    """-> bytes of an SVG, the same for the same results."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
        for axis, draw in zip(axes, (copies, by_quarter, ordinary)):
            draw(axis, found)
        figure.tight_layout(pad=0.6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return buffer.getvalue()
