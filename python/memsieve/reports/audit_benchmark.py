"""The page of memsieve-audit's benchmark: the table, and likeness against what it costs."""

import itertools

from memsieve.reports import plots

# What may stand against likeness, the first that was measured: an alignment, or else how far a method changes ordinary drawings.
COSTS = (("clip", "alignment"), ("similarity_to_plain", "likeness to the plain drawing"))
MARKS = "osD^vPX*"
COLOURS = ("#cf4f3e", "#2f86c8", "#3c9a72", "#9a5fc0", "#b08a2e", "#8a8f98")
SETS = {"prompts": "trigger prompts", "general": "general prompts"}


def likeness(entry):
    """The column that copies are told by: SSCD's where there is one."""
    return "sscd_max" if "sscd_max" in entry["prompts"] else "similarity_max"


def names(summary):
    """The models, each by the last part of its path that tells it from the others."""
    paths = [entry["name"].rstrip("/").split("/") for entry in summary["models"]]
    while len(paths) > 1 and all(len(path) > 1 for path in paths) and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(path[-length:]) for path in paths]
        if len(set(ends)) == len(ends):
            break
    return ends


def labels(summary):
    """Of each row of the table: "MODEL, METHOD"; without the model where there is one only."""
    models = names(summary)
    return [(f"{models[entry['model']]}, " if len(models) > 1 else "") + entry["method"] for entry in summary["table"]]


def plot(summary, cost_set):
    """Likeness of trigger prompts' drawings against a cost on the prompts of `cost_set`; None where none was measured. Models have
    colours, methods marks."""
    table = [entry for entry in summary["table"] if entry.get(cost_set)]
    found = next(((name, what) for name, what in COSTS if table and name in table[0][cost_set]), None)
    if found is None:
        return None
    (cost, what), column = found, likeness(table[0])
    figure, axis = plots.axes(f"{what}, {SETS[cost_set]}", f"closest drawing ({column.split('_')[0]})")
    methods, models = list(dict.fromkeys(entry["method"] for entry in table)), names(summary)
    marks = dict(zip(methods, itertools.cycle(MARKS)))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(models))]
    for entry in table:
        x, y = entry[cost_set][cost], entry["prompts"][column]
        sides = [[[max(0, v["estimate"] - v["low"])], [max(0, v["high"] - v["estimate"])]] for v in (x, y)]
        axis.errorbar(x["estimate"], y["estimate"], xerr=sides[0], yerr=sides[1], linestyle="none", elinewidth=0.8,
                      marker=marks[entry["method"]], markersize=7, color=colours[entry["model"]])
    for method in methods:
        axis.plot([], [], marker=marks[method], linestyle="none", color=plots.INK, label=method)
    for name, colour in zip(models, colours):
        axis.plot([], [], linewidth=6, color=colour, label=name)
    plots.legend(axis, 3)
    return plots.svg(figure, f"likeness of drawings against {what}, {SETS[cost_set]}")


def shown_prompts(audit, name, top):
    """Prompts of a set, the most copied first, with the drawings of every row of the table."""
    summary, drawings = audit.summary, {}
    for row in audit.rows:
        if row.get("set") == name and "picture" in row:
            drawings.setdefault((row["prompt"], row["model"], row["method"]), []).append(row["picture"])
    keys = [model["key"] for model in summary["models"]]
    column = likeness(summary["table"][0])
    found = []
    for prompt in sorted(summary[name], key=lambda p: -max(p[column]))[:top]:
        cells = []
        for number, entry in enumerate(summary["table"]):
            pictures = map(audit.picture, drawings.get((prompt["prompt"], keys[entry["model"]], entry["method"]), []))
            cells.append({"pictures": [picture for picture in pictures if picture], "likeness": prompt[column][number]})
        found.append({"caption": prompt["caption"], "cells": cells})
    return found


def benchmark(audit, top):
    summary = audit.summary
    sets = [name for name in SETS if summary.get(name)]
    columns = {name: [column for column in summary["columns"] if column in summary["table"][0][name]] for name in sets}
    return {"sets": sets, "set_names": SETS, "columns": columns, "labels": labels(summary),
            "plots": [svg for svg in (plot(summary, name) for name in sets) if svg], "likeness": likeness(summary["table"][0]),
            "shown": {name: shown_prompts(audit, name, top) for name in sets}}
