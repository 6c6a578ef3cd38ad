"""The tables of docs/detection.md; what stands between their marks is made, the rest is written by hand."""

import re

from memsieve.reports.program import InputError

from . import book, rules, shares
from .scenarios import SCENARIOS

DASH = "–"


def percent(value, digits=1):
    return DASH if value is None else f"{100 * value:.{digits}f}%"


def signed(value, digits=1):
    return DASH if value is None else f"{100 * value:+.{digits}f}%"


def times(value):
    return DASH if value is None else f"{value:.2f}"


def fixed(value):
    return DASH if value is None else f"{value:.3f}"


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def with_seeds(values, show, interval=None):
    """Mean of the seeds, its interval in brackets, and, of several seeds, each in parentheses."""
    if mean(values) is None:
        return DASH
    text = show(mean(values))
    if interval is not None:
        text += " [" + " to ".join(show(end).rstrip("%") for end in interval) + "]"
    return text + (f" ({', '.join(show(value).rstrip('%') for value in values)})" if len(values) > 1 else "")


def lines_of(header, rows):
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *("| " + " | ".join(row) + " |" for row in rows)]


def groups(found, only=None):
    """Every scenario and rule that has results, in the order of the scenarios and rules."""
    for scenario in SCENARIOS.values():
        if scenario.reported:
            for rule in rules.RULES:
                group = book.Group(found, scenario.name, rule)
                if group.runs and (only is None or only(group)):
                    yield group


def head(group):
    return [group.scenario.title, rules.TITLES[group.rule]]


def with_copies(group):
    return any(run["repeated_rows"] for run in group.runs)


def copies_table(found):
    rows = []
    for group in groups(found, with_copies):
        last, cyclic = (book.copies_pooled(group.runs, pick) for pick in (book.last_copies, book.cyclic_copies))
        rows.append(head(group) + [
            with_seeds(group.values(lambda run: shares.value(book.of_drawings(book.last_copies(run)))), percent, shares.interval(last)),
            DASH if group.rule == "off" else with_seeds(group.controls(), percent),
            percent(shares.value(cyclic)),
            with_seeds(group.values(lambda run: run["drawings"][-1]["correlation"]), fixed),
            fixed(mean(group.values(lambda run: run["drawings"][-1]["ordinary_correlation"])))])
    return lines_of(["scenario", "rule", "copies", "control", "after cyclic denoising", "correlation", "ordinary"], rows)


def quarters(group, rows):
    parts = [shares.value(group.dropped(rows, "quarters", q)) for q in range(4)]
    return DASH if not any(part is not None for part in parts) else "/".join(percent(p).rstrip("%") for p in parts) + "%"


def dropping_table(found):
    rows = []
    for group in groups(found, lambda group: any("dropped" in run for run in group.runs)):
        rows.append(head(group) + [
            percent(shares.value(group.dropped("repeated", "all"))), quarters(group, "repeated"),
            with_seeds(group.dropped_by_seed("ordinary", "all"), percent, shares.interval(group.dropped("ordinary", "all"))),
            quarters(group, "ordinary"),
            percent(mean(group.values(lambda run: book.reach(run, "dropped", "ordinary", "rows_never_dropped"))))])
        for part in group.scenario.parts:
            share = group.dropped("ordinary", "parts", part)
            if share is not None:
                rows.append([f"{group.scenario.title}: the first {part}", rules.TITLES[group.rule], DASH, DASH, with_seeds(
                    group.dropped_by_seed("ordinary", "parts", part), percent, shares.interval(share)), DASH, DASH])
    return lines_of(["scenario", "rule", "repeated visits dropped", "by quarter", "ordinary visits dropped", "by quarter",
                     "ordinary rows never dropped"], rows)


def cost_table(found):
    rows = []
    for group in groups(found):
        if group.rule == "off":
            loss = with_seeds(group.values(book.validation_loss), "{:.4f}".format)
            step, seconds = (mean(group.values(lambda run, key=key: run[key])) for key in ("step_ms", "seconds"))
            rows.append(head(group) + [loss, DASH if step is None else f"{step:.0f} ms",
                                       DASH if seconds is None else f"{seconds:.0f} s", DASH])
            continue
        change = [None if ratio is None else ratio - 1 for ratio in group.against_plain(book.validation_loss)]
        rows.append(head(group) + [with_seeds(change, signed), *(
            with_seeds(group.against_plain(lambda run, key=key: run[key]), times)
            for key in ("step_ms", "seconds", "ordinary_row_ms"))])
    return lines_of(["scenario", "rule", "validation loss", "step", "run", "per ordinary row, second half"], rows)


# What the recommended rule is to reach, mean of the seeds: words, scenarios, figure, whether it is reached.
TARGETS = (
    ("copies at most 3%", ("a", "b", "c", "g"), "copies", lambda value: value <= 0.03),
    ("copies at most 10%", ("d", "d_groups", "e", "f"), "copies", lambda value: value <= 0.10),
    ("repeated visits dropped in the first quarter: at least 25%", ("a", "b"), "early", lambda value: value >= 0.25),
    ("ordinary visits dropped: at most 1.5%", tuple(n for n, s in SCENARIOS.items() if s.reported), "ordinary",
     lambda value: value <= 0.015),
    ("validation loss: at most +0.5%", tuple(n for n, s in SCENARIOS.items() if s.reported), "loss", lambda value: value <= 0.005),
    ("time of a run: at most 1.06 times", tuple(n for n, s in SCENARIOS.items() if s.reported), "seconds",
     lambda value: value <= 1.06),
)


def target_figure(group, name):
    """-> (mean of the seeds, how it is shown); (None, ...) where it is not known."""
    if name == "copies":
        return mean(group.values(lambda run: shares.value(book.of_drawings(book.last_copies(run))))), percent
    if name == "early":
        return shares.value(group.dropped("repeated", "quarters", 0)), percent
    if name == "ordinary":
        return shares.value(group.dropped("ordinary", "all")), percent
    if name == "loss":
        ratio = mean(group.against_plain(book.validation_loss))
        return None if ratio is None else ratio - 1, signed
    return mean(group.against_plain(lambda run: run["seconds"])), times


def target_figures(found, name, figure):
    """(what it is of, value, how it is shown) of a scenario, and of its parts where they have the figure."""
    group = book.Group(found, name, "default")
    if not group.runs:
        return
    yield name, *target_figure(group, figure)
    if figure == "ordinary":
        for part in group.scenario.parts:
            yield f"{name} ({part})", shares.value(group.dropped("ordinary", "parts", part)), percent


def targets_table(found):
    rows = []
    for words, names, figure, reached in TARGETS:
        cells = []
        for name in names:
            for what, value, show in target_figures(found, name, figure):
                if value is not None:
                    cells.append(f"{what} {show(value)}" if reached(value) else f"{what} **{show(value)}**")
        rows.append([words, ", ".join(cells) or "not measured yet"])
    return lines_of(["target", "memsieve; bold where it is missed"], rows)


def data_of(found, scenario):
    """How many rows a scenario has and how many of them are repeated: every run of it knows, whatever its rule."""
    same = (runs for (name, _), runs in found.items() if name in (scenario.name, scenario.of_plain))
    run = next((run for runs in same for run in runs.values()), None)
    if run is None:
        return DASH
    share = percent(run["repeated_rows"] / run["rows"], 0) if run["repeated_rows"] else "none"
    return f"{run['rows']}, {share} of them repeated"


def scenarios_table(found):
    rows = []
    for scenario in SCENARIOS.values():
        if scenario.reported:
            rows.append([scenario.name, scenario.title, data_of(found, scenario), str(scenario.steps)])
    return lines_of(["", "scenario", "rows", "steps of 32"], rows)


TABLES = {"scenarios": scenarios_table, "targets": targets_table, "copies": copies_table, "dropping": dropping_table,
          "cost": cost_table}


def fill(text, found, where="docs/detection.md"):
    """The page with its tables made anew. Each stands between `<!-- table: NAME -->` and `<!-- end of table -->`."""
    for name, make in TABLES.items():
        marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.DOTALL)
        if len(marks.findall(text)) != 1:
            raise InputError(f"{where}: the marks `<!-- table: {name} -->` and `<!-- end of table -->` are not there once")
        lines = "\n".join(make(found))
        text = marks.sub(lambda match, lines=lines: f"{match[1]}{lines}\n{match[2]}", text)
    return text
