#!/usr/bin/env python3
"""Several summary.json files of memsieve report (one for each seed) -> one Markdown table: mean and, in brackets, least to most.

    aggregate.py runs/seed1/summary.json runs/seed2/summary.json runs/seed3/summary.json
"""

import argparse
import json
import sys

COLUMNS = (("off", "plain"), ("published", "published rule"), ("on", "memsieve"))


def share(value):
    return f"{100 * value:.1f}%"


def spread(values, show):
    """[0.1, 0.3] -> "20.0% (10.0% to 30.0%)"; None where a seed lacks the figure makes the cell say for how many."""
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    missing = "" if len(known) == len(values) else f", {len(known)} of {len(values)} runs"
    mean = show(sum(known) / len(known))
    return mean + (f" ({show(min(known))} to {show(max(known))}{missing})" if len(values) > 1 else "")


def ratio(summary, key, name):
    base, value = summary.get(f"{key}_off"), summary.get(f"{key}_{name}")
    return value / base if base and value is not None else None


def dropping(summary, key, name):
    if name == "off":
        return None
    return summary.get(key if name == "on" else f"{key}_{name}")


def control(summary, name):
    return {"off": None, "on": summary.get("copies_control")}.get(name, summary.get(f"copies_control_{name}"))


def table(summaries):
    """The Markdown lines."""
    columns = [(name, words) for name, words in COLUMNS if any(f"copies_{name}" in summary for summary in summaries)]
    rows = [
        ("copies among drawings of repeated pictures", lambda s, n: s.get(f"copies_{n}"), share),
        ("control: copies of plain at as many kept visits", control, share),
        ("mean correlation with the training picture", lambda s, n: s.get(f"correlation_{n}"), "{:.3f}".format),
        ("visits of repeated pictures dropped", lambda s, n: dropping(s, "repeated_dropped", n), share),
        ("visits of ordinary pictures dropped", lambda s, n: dropping(s, "ordinary_dropped", n), share),
        ("precision of dropping", lambda s, n: dropping(s, "precision", n), share),
        ("validation loss of ordinary pictures", lambda s, n: s.get(f"val_loss_{n}"), "{:.4f}".format),
        ("the same against plain, per seed", lambda s, n: None if n == "off" or (r := ratio(s, "val_loss", n)) is None else r - 1,
         lambda value: f"{100 * value:+.1f}%"),
        ("step time against plain, per seed", lambda s, n: None if n == "off" else ratio(s, "step_ms", n), "x{:.2f}".format),
    ]
    lines = ["| | " + " | ".join(words for _, words in columns) + " |", "|---|" + "---|" * len(columns)]
    for words, get, show in rows:
        lines.append(f"| {words} | " + " | ".join(spread([get(summary, name) for summary in summaries], show)
                                                  .replace("n/a", "–") for name, _ in columns) + " |")
    seeds = ", ".join(str(summary.get("seed")) for summary in summaries)
    kinds = {summary.get("control", {}).get("source") for summary in summaries}
    how = "interpolated between its samples" if kinds == {"interpolated"} else "runs of their own" if kinds == {"run"} else "mixed"
    lines += ["", f"Control: the plain run at as many visits of the repeated pictures as the filtered run kept ({how}).",
              f"{len(summaries)} run{'s' if len(summaries) != 1 else ''}, seed{'s' if len(summaries) != 1 else ''} {seeds}; "
              "mean, in brackets least to most."]
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", nargs="+", metavar="summary.json")
    summaries = []
    for path in parser.parse_args(argv).summaries:
        try:
            with open(path, encoding="utf-8") as file:
                summaries.append(json.load(file))
            if "copies_on" not in summaries[-1]:
                raise ValueError("not a summary of memsieve report: no copies_on")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            print(f"aggregate: {path}: {reason}", file=sys.stderr)
            return 3
    print("\n".join(table(summaries)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
