"""Every figure that `memsieve report` shows, worked out from runs and data."""

import numpy as np

from memsieve.ledger import completed, completed_without_passing_over
from memsieve.reports.program import InputError

COPY = 0.8        # correlation from which a drawing counts as a copy
WINDOWS = 20      # windows of steps in the curves over time


def units(images):
    """uint8 [N, 3, H, W] -> float64 [N, 3HW]: the mean over all channels removed, length 1."""
    flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def copy_scores(drawn, originals):
    """drawn [P, S, 3, H, W], originals [P, 3, H, W] -> correlation [P, S] of each drawing with its own original."""
    if len(drawn) != len(originals) or drawn.shape[2:] != originals.shape[1:]:
        raise InputError(f"samples of shape {list(drawn.shape)} do not fit prompts.h5 with images {list(originals.shape)}: "
                          "the run was sampled with other prompts")
    own = units(originals)
    return np.stack([units(drawings) @ own[p] for p, drawings in enumerate(drawn)])


def nearest_scores(drawn, training):
    """Correlation [P, S] of each drawing with the training picture that it resembles most."""
    flat = units(drawn.reshape(-1, *drawn.shape[2:])) @ units(training).T
    return flat.max(axis=1).reshape(drawn.shape[:2])


def copies(scores):
    return float((scores > COPY).mean())


def drop_figures(visits, repeated):
    """Shares of visits with weight 0, precision and recall against the truth, overall and by quarter of the steps."""
    truth, dropped, step = repeated[visits["sample"]], visits["weight"] == 0, completed(visits["step"])

    def figures(mask):
        bad, ok = truth & mask, ~truth & mask
        hits, wrong = int((dropped & bad).sum()), int((dropped & ok).sum())
        return {"repeated_dropped": hits / bad.sum() if bad.any() else None,
                "ordinary_dropped": wrong / ok.sum() if ok.any() else None,
                "precision": hits / (hits + wrong) if hits + wrong else None,
                "recall": hits / bad.sum() if bad.any() else None}

    last = step.max() if len(step) else 0
    quarters = [figures((step > last * q / 4) & (step <= last * (q + 1) / 4)) for q in range(4)]
    return figures(np.ones(len(step), dtype=bool)), quarters


def window_edges(last, count=WINDOWS):
    count = int(max(1, min(count, last)))
    return np.linspace(0, last, count + 1)


def quartiles_by_window(step, values, edges):
    """-> (centre of window, 25 %, 50 %, 75 %) over finite values, windows without any left out."""
    rows = []
    for low, high in zip(edges[:-1], edges[1:]):
        part = values[(step > low) & (step <= high)]
        part = part[np.isfinite(part)]
        if len(part):
            rows.append([(low + high) / 2, *np.percentile(part, [25, 50, 75])])
    return np.array(rows).reshape(-1, 4)


def share_by_window(step, hit, edges):
    rows = [[(low + high) / 2, hit[inside].mean()] for low, high in zip(edges[:-1], edges[1:])
            if (inside := (step > low) & (step <= high)).any()]
    return np.array(rows).reshape(-1, 2)


def thinning_control(off, on_visits, off_visits, mix, originals, count):
    """Copies of the plain run at the step where it had trained as much on the repeated pictures as a filtered run kept.

    Interpolates linearly between the two samples next to that step. The plain run's visits are taken from its own ledger,
    or, without one, from the filtered run's: with one seed both see the same rows.
    """
    truth = mix.repeated[on_visits["sample"]]
    kept = float(on_visits["weight"][truth].sum())
    source = on_visits if off_visits is None else off_visits
    steps = np.sort(completed_without_passing_over(source)[mix.repeated[source["sample"]]])
    seen = np.arange(1, len(steps) + 1)
    step = float(np.interp(kept, seen, steps)) if len(steps) else 0.0
    at = sorted(off.samples)
    shares = [copies(copy_scores(off.samples[s], originals)[:count]) for s in at]
    means = [float(copy_scores(off.samples[s], originals)[:count].mean()) for s in at]
    below = max([s for s in at if s <= step], default=at[0])
    above = min([s for s in at if s >= step], default=at[-1])
    return {"kept_visits": kept, "all_visits": int(len(steps)), "step": step, "between": [below, above],
            "copies": float(np.interp(step, at, shares)), "correlation": float(np.interp(step, at, means))}


def dropped_by_picture(visits, data):
    """{group: (visits, visits dropped, a row of it, repeated)}"""
    dropped, result = visits["weight"] == 0, {}
    groups = data.group[visits["sample"]]
    for group in np.unique(groups):
        mask = groups == group
        row = int(np.flatnonzero(data.group == group)[0])
        result[int(group)] = (int(mask.sum()), int(dropped[mask].sum()), row, bool(data.repeated[row]))
    return result
