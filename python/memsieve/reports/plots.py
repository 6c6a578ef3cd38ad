"""The curves of the report, each as an SVG that takes the page's text colour."""

import io
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from memsieve.ledger import completed, of_held_out_rows
from memsieve.reports import figures

COLOURS = {"off": "#cf4f3e", "on": "#2f86c8", "published": "#b08a2e", "control": "#8a8f98",
           "repeated": "#9a5fc0", "ordinary": "#3c9a72", "held_out": "#8a8f98"}
NAMES = {"off": "without the filter", "on": "with the filter", "published": "with the published rule", "control": "control run"}
INK = "#010203"  # stands for the page's text colour; replaced by currentColor
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
         "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.8, "legend.frameon": False,
         "legend.fontsize": 10, "svg.hashsalt": "memsieve", "axes.grid": True, "grid.color": INK, "grid.alpha": 0.13}
SHORT = {"off": "without", "on": "with", "published": "published", "control": "control"}


def axes(xlabel, ylabel, width=5.6, height=3.3):
    plt.rcParams.update(STYLE)
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    return figure, axis


def legend(axis, columns=2):
    """Above the curves, where it hides nothing."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=1.6, columnspacing=1.2)


def svg(figure, label):
    """Figure -> inline SVG; `label` is what a screen reader says."""
    buffer = io.StringIO()
    figure.tight_layout(pad=0.4)
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg"):].replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def percent_axis(axis, top=None):
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axis.set_ylim(0, top)


def copies_over_steps(comparison):
    figure, axis = axes("step", "drawings that are copies")
    for name, run in comparison.runs():
        if name == "control":
            continue
        at = sorted(run.samples)
        shares = [figures.copies(figures.copy_scores(run.samples[s], comparison.prompts.images)[:comparison.count]) for s in at]
        axis.plot(at, shares, marker="o", markersize=4, color=COLOURS[name], label=NAMES[name])
    control = comparison.thinning
    if control["source"] == "interpolated":
        axis.plot([control["step"]], [control["copies"]], marker="D", markersize=9, color="none", linestyle="none",
                  markeredgecolor=INK, markeredgewidth=1.5, label="control: as many visits kept")
    percent_axis(axis, 1.0)
    legend(axis)
    return svg(figure, "share of drawings that are copies over the steps")


def column_over_steps(comparison, name, column, label):
    """Median and quartiles of a ledger column, repeated and ordinary rows apart; None if nothing was measured.

    `raw_magnitude` is shown as the magnitude itself, on a logarithmic axis.
    """
    run = dict(comparison.runs())[name]
    visits = run.visits()
    if visits is None or column not in visits.dtype.names or not np.isfinite(visits[column]).any():
        return None
    logarithmic = column == "raw_magnitude"
    values = run.magnitudes if logarithmic else lambda rows: rows[column]
    truth, step = comparison.mix.repeated[visits["sample"]], completed(visits["step"])
    edges = figures.window_edges(step.max())
    figure, axis = axes("step", label)
    for group, mask in (("repeated", truth), ("ordinary", ~truth)):
        curve = figures.quartiles_by_window(step[mask], values(visits)[mask], edges)
        if len(curve):
            axis.fill_between(curve[:, 0], curve[:, 1], curve[:, 3], color=COLOURS[group], alpha=0.22, linewidth=0)
            axis.plot(curve[:, 0], curve[:, 2], color=COLOURS[group], label=f"{group} pictures")
    held_out = of_held_out_rows(run.ledger)
    if len(held_out) and np.isfinite(held_out[column]).any():
        curve = figures.quartiles_by_window(completed(held_out["step"]), values(held_out), edges)
        axis.plot(curve[:, 0], curve[:, 2], color=COLOURS["held_out"], linestyle="--", label="held-out pictures")
    if logarithmic:
        axis.set_yscale("log")
    legend(axis)
    return svg(figure, f"{label} over the steps, {NAMES[name]}")


def dropped_over_steps(comparison):
    figure, axis = axes("step", "visits dropped")
    for name, style in (("on", "-"), ("published", ":")):
        if name not in comparison.drops:
            continue
        visits = dict(comparison.runs())[name].visits()
        truth, step = comparison.mix.repeated[visits["sample"]], completed(visits["step"])
        edges = figures.window_edges(step.max())
        for group, mask in (("repeated", truth), ("ordinary", ~truth)):
            curve = figures.share_by_window(step[mask], visits["weight"][mask] == 0, edges)
            label = f"{group} pictures" + (", published" if name == "published" else "")
            if len(curve):
                axis.plot(curve[:, 0], curve[:, 1], color=COLOURS[group], linestyle=style, label=label)
    percent_axis(axis, 1.0)
    legend(axis)
    return svg(figure, "share of visits dropped over the steps")


def validation_over_steps(comparison):
    figure, axis = axes("step", "validation loss")
    drawn = False
    for name, run in comparison.runs():
        if name != "control" and len(run.validation):
            axis.plot(run.validation[:, 0], run.validation[:, 1], marker="o", markersize=3, color=COLOURS[name],
                      label=NAMES[name])
            drawn = True
    if not drawn:
        plt.close(figure)
        return None
    legend(axis)
    return svg(figure, "validation loss over the steps")


def step_times(comparison):
    figure, axis = axes("time of a step (ms)", "share of steps")
    runs = [(name, run) for name, run in comparison.runs() if name != "control"]
    every = np.concatenate([run.steps["step_ms"] for _, run in runs])
    every = every[np.isfinite(every)]
    bins = np.linspace(every.min() * 0.98, np.percentile(every, 98) * 1.02, 50)
    for name, run in runs:
        times = run.steps["step_ms"][np.isfinite(run.steps["step_ms"])]
        weights = np.full(len(times), 1 / max(len(times), 1))
        axis.hist(np.clip(times, bins[0], bins[-1]), bins=bins, weights=weights, color=COLOURS[name], alpha=0.5,
                  label=f"{NAMES[name]}: median {run.step_ms:.0f} ms")
        axis.axvline(run.step_ms, color=COLOURS[name], linewidth=1.5)
    percent_axis(axis)
    legend(axis, 1)
    return svg(figure, "distribution of the time of a step")


def evidence(comparison):
    """Evidence minus the threshold in the last quarter of the filtered run."""
    visits = comparison.on.visits()
    step = completed(visits["step"])
    margin = visits["score"].astype(float) - visits["threshold"]
    late = (step > step.max() * 0.75) & np.isfinite(margin)
    if late.sum() < 10:
        return None
    truth = comparison.mix.repeated[visits["sample"]]
    low, high = np.percentile(margin[late], [0.5, 99.5])
    bins = np.linspace(min(low, -0.1), max(high, 0.1), 60)
    figure, axis = axes("evidence minus the level for dropping", "share of visits")
    for group, mask in (("ordinary", ~truth), ("repeated", truth)):
        values = np.clip(margin[late & mask], bins[0], bins[-1])
        if len(values):
            axis.hist(values, bins=bins, weights=np.full(len(values), 1 / len(values)), color=COLOURS[group], alpha=0.55,
                      label=f"{group} pictures")
    axis.axvline(0, color=INK, linewidth=1.2)
    percent_axis(axis)
    legend(axis)
    return svg(figure, "distribution of the evidence in the last quarter")
