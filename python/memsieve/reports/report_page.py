"""The report as one HTML page: what templates/report.html.j2 shows."""

import difflib

from markupsafe import Markup

from memsieve.reports import figures, page, plots
from memsieve.reports.words import change, fixed, percent


def drawing(pixels, score, name):
    copied = score > figures.COPY
    words = f"drawn {plots.NAMES[name]}, correlation {score:.2f}" + (", a copy" if copied else "")
    return {"pixels": pixels, "words": words, "score": score, "copied": copied}


def prompt_card(comparison, index, runs, dropped):
    """One caption: its training picture, what each run draws for it, and how many visits of it were dropped."""
    drawn = [{"name": plots.SHORT[name], "pictures": [drawing(pixels, score, name) for pixels, score
                                                      in zip(run.last_samples[index], comparison.scores[name][index])]}
             for name, run in runs]
    visits, lost, _, _ = dropped.get(int(comparison.prompts.group[index]), (0, 0, 0, False))
    return {"caption": comparison.prompts.captions[index], "training": comparison.prompts.images[index], "drawn": drawn,
            "visits": visits, "lost": lost}


def most_dropped(comparison, dropped, count=12):
    """The ordinary pictures that lost the largest share of their visits, and how concentrated the loss is."""
    ordinary = [entry for entry in dropped.values() if not entry[3]]
    worst = sorted((entry for entry in ordinary if entry[1]), key=lambda entry: (-entry[1] / entry[0], -entry[1]))[:count]
    lost = sorted((entry[1] for entry in ordinary), reverse=True)
    top = max(1, round(len(lost) * 0.05))
    repeated = comparison.prompts.images[:comparison.count]
    cards = []
    for visits, gone, row, _ in worst:
        nearest = figures.units(comparison.mix.images[row:row + 1]) @ figures.units(repeated).T
        cards.append({"caption": comparison.mix.captions[row], "pixels": comparison.mix.images[row], "gone": gone, "visits": visits,
                      "correlation": nearest.max(), "nearest": repeated[int(nearest.argmax())]})
    return {"never": sum(entry[1] == 0 for entry in ordinary), "pictures": len(ordinary), "top": top, "cards": cards,
            "top_share": top / len(lost) if lost else None, "lost_share": sum(lost[:top]) / sum(lost) if sum(lost) else None}


def figures_table(summary):
    """(names of the runs, [(words, a cell for each run)])"""
    names = ["off"] + (["published"] if "copies_published" in summary else []) + ["on"]

    def dropping(key):
        return ["–" if name == "off" else percent(summary.get(key if name == "on" else f"{key}_published"))
                for name in names]

    def each(key, show):
        return [show(summary[f"{key}_{name}"]) for name in names]

    control = [percent({"off": summary["copies_off"], "published": summary.get("copies_control_published"),
                        "on": summary["copies_control"]}[name]) for name in names]
    rows = [
        ("Copies among drawings of repeated pictures (own picture)", each("copies", percent)),
        ("… of any training picture", each("copies_of_any", percent)),
        ("Copies among drawings of ordinary pictures", each("ordinary_copies", percent)),
        ("Control: copies of the plain run at as many kept visits", control),
        ("Mean correlation of repeated pictures' drawings", each("correlation", lambda v: fixed(v, 3))),
        ("Visits of repeated pictures dropped (recall)", dropping("repeated_dropped")),
        ("Visits of ordinary pictures dropped", dropping("ordinary_dropped")),
        ("Dropped visits that were of repeated pictures (precision)", dropping("precision")),
        ("Validation loss, last", each("val_loss", lambda v: fixed(v, 4))),
        ("Median time of a step (ms)", each("step_ms", lambda v: fixed(v, 1))),
        ("Steps", each("last_step", str)),
    ]
    return [plots.NAMES[name] for name in names], rows


def curves(comparison):
    """{name: SVG}, None where a run measured nothing of it."""
    column = plots.column_over_steps
    drawn = {"copies": plots.copies_over_steps(comparison), "dropped": plots.dropped_over_steps(comparison),
             "score": column(comparison, "on", "score", "evidence"), "evidence": plots.evidence(comparison),
             "validation": plots.validation_over_steps(comparison), "step_times": plots.step_times(comparison)}
    for name in ("off", "on"):
        drawn[f"raw_{name}"] = column(comparison, name, "raw_magnitude", "magnitude")
        drawn[f"z_{name}"] = column(comparison, name, "z_magnitude", "standardised magnitude")
    return {name: svg and Markup(svg) for name, svg in drawn.items()}  # matplotlib wrote them, from our own words alone


def render(comparison, summary, title):
    dropped = figures.dropped_by_picture(comparison.on.visits(), comparison.mix)
    count, every = comparison.count, len(comparison.prompts.images)
    runs = [(name, run) for name, run in comparison.runs() if name != "control"]
    cards = [prompt_card(comparison, index, runs, dropped) for index in range(every)]
    off, on = comparison.off.config.text, comparison.on.config.text
    return page.render(
        "report.html.j2", title=title, comparison=comparison, off=comparison.off, on=comparison.on, summary=summary,
        control=summary["control"], validation_change=change(summary), copy=figures.COPY, names=plots.NAMES,
        repeated_rows=int(comparison.mix.repeated.sum()),
        # Group ids tell the filter of the repetition only where evidence is pooled over them.
        pooled=comparison.on.config.get("sieve.evidence.pool") == "group",
        card_width=72 + sum(8 + 50 * run.last_samples.shape[1] for _, run in runs), repeated_cards=cards[:count],
        ordinary_cards=cards[count:], table=figures_table(summary), curves=curves(comparison),
        most_dropped=most_dropped(comparison, dropped), config=on,
        config_changes="\n".join(difflib.unified_diff(off.splitlines(), on.splitlines(), "without", "with", lineterm="", n=1)))
