#!/usr/bin/env python3
"""What a run dropped and why: one HTML page with the samples that lost most, and a CSV file with all of them.

    ledger_view.py runs/mine                      # writes runs/mine/dropped.html and runs/mine/dropped.csv
    ledger_view.py runs/mine --by sample --top 300 --data data/mine/train.h5 --out /tmp/look
"""

import argparse
import csv
import io
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from report_data import ReportError, open_h5, percent

CHART = (220, 48)  # pixels


@dataclass
class Lost:
    """A sample, or a group of copies, and what became of its visits."""

    key: int
    rows: np.ndarray      # sample ids that were visited
    visits: np.ndarray    # of the ledger, in the order of steps

    @property
    def dropped(self):
        return self.visits["weight"] == 0

    @property
    def weight_lost(self):
        return float((1 - self.visits["weight"].astype(float)).sum())


class Data:
    """Captions, file names and small pictures of the data set, as far as it has them."""

    def __init__(self, path):
        self.path, self.file = path, open_h5(path)
        for name in ("caption", "text"):
            if name in self.file:
                self.size = len(self.file[name])
                return
        raise ReportError(f"{path}: no /caption: not a memsieve data set (docs/data_format.md)")

    def words(self, name, row):
        if name not in self.file:
            return ""
        value = self.file[name][row]
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def picture(self, row):
        """uint8 [H, W, 3], or None: latents alone cannot be shown."""
        if "thumbnail" in self.file:
            return self.file["thumbnail"][row]
        if "images" in self.file:
            return self.file["images"][row].transpose(1, 2, 0)
        return None


def read_visits(run):
    path = Path(run) / "ledger.h5"
    with open_h5(path, libver="latest", swmr=True) as file:
        if "visits" not in file:
            raise ReportError(f"{path}: no /visits: not a ledger (docs/ledger_format.md)")
        visits = file["visits"][:]
    visits = visits[visits["kind"] == 0]
    if not len(visits):
        raise ReportError(f"{path}: holds no visit of a training row yet")
    return visits


def data_path(run):
    """data.train of the run's resolved configuration."""
    config = Path(run) / "config.yaml"
    found = re.search(r"^data:\n(?: +.*\n)*? +train: *(.+)$", config.read_text(), re.MULTILINE) if config.exists() else None
    if not found:
        raise ReportError(f"{config}: tells no data.train; name the data set with --data")
    return found.group(1).strip().strip("\"'")


def collect(visits, by):
    """[Lost], those that lost the most weight first."""
    visits = visits[np.lexsort((visits["step"], visits[by]))]
    keys, first = np.unique(visits[by], return_index=True)
    parts = [Lost(int(key), np.unique(part["sample"]), part) for key, part in zip(keys, np.split(visits, first[1:]))]
    return sorted(parts, key=lambda p: (-p.weight_lost, -p.weight_lost / len(p.visits), p.key))


def channels(visits):
    return [name[2:] for name in visits.dtype.names if name.startswith("z_")]


def mean(values):
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def figures(lost, data):
    """One line of the CSV."""
    visits, dropped = lost.visits, lost.dropped
    steps, scores = visits["step"][dropped], visits["score"][np.isfinite(visits["score"])]
    row = int(lost.rows[0])
    line = {"id": lost.key, "rows": len(lost.rows), "visits": len(visits), "dropped": int(dropped.sum()),
            "dropped_share": round(float(dropped.mean()), 4), "weight_lost": round(lost.weight_lost, 3),
            "first_dropped_step": int(steps[0]) if len(steps) else "", "last_dropped_step": int(steps[-1]) if len(steps) else "",
            "highest_score": round(float(scores.max()), 4) if len(scores) else "",
            "last_score": round(float(scores[-1]), 4) if len(scores) else ""}
    for name in channels(visits):  # why: which signal stood out where it was judged memorised
        value = mean(visits[f"z_{name}"][visits["flagged"] == 1])
        line[f"z_{name}_when_flagged"] = "" if value is None else round(value, 3)
    return line | {"caption": data.words("caption", row), "file_name": data.words("file_name", row)}


def chart(lost, last_step):
    """Score over the steps as SVG: dropped visits are red, the dashed line is the level for dropping."""
    width, height = CHART
    visits = lost.visits[np.isfinite(lost.visits["score"])]
    if not len(visits):
        return '<span class="soft">never measured</span>'
    level = visits["threshold"].astype(float)
    shown = np.concatenate([visits["score"].astype(float), level[np.isfinite(level)]])
    low, high = shown.min(), max(shown.max(), shown.min() + 1e-6)
    x = 3 + (width - 6) * visits["step"] / max(last_step, 1)

    def y(values):
        return height - 3 - (height - 6) * (values - low) / (high - low)

    def points(ys, mask):
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[mask], ys[mask]))

    known = np.isfinite(level)
    every = np.ones(len(visits), dtype=bool)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" class="{"lost" if w == 0 else "kept"}"/>'
                   for a, b, w in zip(x, y(visits["score"].astype(float)), visits["weight"]))
    dashed = f'<polyline points="{points(y(np.where(known, level, low)), known)}" class="level"/>'
    line = f'<polyline points="{points(y(visits["score"].astype(float)), every)}" class="line"/>'
    return (f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="score over the steps, '
            f'{low:.2f} to {high:.2f}">{dashed}{line}{dots}</svg>')


def html_row(lost, line, data, last_step):
    from report_page import picture
    pixels = data.picture(int(lost.rows[0]))
    image = picture(np.asarray(pixels).transpose(2, 0, 1), f"picture {lost.rows[0]}") if pixels is not None else ""
    why = "<br>".join(f"{escape(name)}: z {line[f'z_{name}_when_flagged']}" for name in channels(lost.visits)
                      if line[f"z_{name}_when_flagged"] != "")
    copies = f" &middot; {line['rows']} rows" if line["rows"] > 1 else ""
    file_name = f'<div class="soft">{escape(line["file_name"])}</div>' if line["file_name"] else ""
    return (f'<tr><td class="thumb">{image}</td><td class="words">{escape(line["caption"])}{file_name}'
            f'<div class="soft">id {lost.key}{copies}</div></td><td>{line["dropped"]} of {line["visits"]}<div class="soft">'
            f'{percent(line["dropped_share"])}</div></td><td>{line["first_dropped_step"]} &ndash; {line["last_dropped_step"]}</td>'
            f'<td class="soft">{why}</td><td>{chart(lost, last_step)}</td></tr>')


STYLE = """
td.thumb:first-child, thead th:first-child { min-width: 0; } thead th:nth-child(2), .words { text-align: left; }
.thumb img { width: 72px; height: 72px; object-fit: contain; } .words { max-width: 34ch;
overflow-wrap: anywhere; } svg .line { fill: none; stroke: var(--soft); stroke-width: 1; } svg .level { fill: none;
stroke: currentColor; stroke-dasharray: 3 3; stroke-width: 1; } svg .lost { fill: var(--bad); } svg .kept { fill: var(--good); }
"""


def page(run, parts, lines, data, top, by):
    style = Path(__file__).with_name("report_page.css").read_text() + STYLE
    every = np.concatenate([p.visits for p in parts])
    losers = [p for p in parts if p.weight_lost > 0]
    last_step, lost = int(every["step"].max()), sum(p.weight_lost for p in parts)
    tenth = max(1, len(parts) // 10)
    thing = {"group": "groups of copies (a row without copies is its own group)", "sample": "samples"}[by]
    concentrated = f" The tenth that lost most carries {percent(sum(p.weight_lost for p in parts[:tenth]) / lost, 0)} of it." if lost else ""
    body = "".join(html_row(p, line, data, last_step) for p, line in zip(losers[:top], lines))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Dropped in {escape(str(run))}</title><style>{style}</style></head><body><main>
<h1>What the filter dropped</h1>
<p>{escape(str(run))}, steps 0 to {last_step}: {int((every["weight"] == 0).sum())} of {len(every)} visits dropped
({percent(float((every["weight"] == 0).mean()))}). {len(losers)} of {len(parts)} {thing} lost weight in at least one visit.{concentrated}
Below the {min(top, len(losers))} that lost most; all are in dropped.csv.</p>
<p class="soft">Score: the evidence that the verdict rests on, one point for each visit with a verdict, red = dropped; dashed: the level
for dropping at that visit. z: mean standardised signal over the visits judged memorised, by filter.</p>
<div class="scroll"><table><thead><tr><th></th><th>caption</th><th>dropped</th><th>steps of drops</th><th>signals</th>
<th>score over the steps</th></tr></thead><tbody>{body}</tbody></table></div>
<p class="soft">Made by tools/ledger_view.py from ledger.h5 and {escape(str(data.path))}.</p></main></body></html>
"""


def make(arguments):
    from report import replace_file
    visits = read_visits(arguments.run)
    data = Data(arguments.data or data_path(arguments.run))
    if visits["sample"].max() >= data.size:
        raise ReportError(f"{data.path}: has {data.size} rows, but the run visited sample {visits['sample'].max()}; name its own data "
                          "set with --data")
    parts = collect(visits, arguments.by)
    lines = [figures(part, data) for part in parts]
    out = Path(arguments.out or arguments.run)
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    replace_file(out / "dropped.csv", table.getvalue().encode())
    replace_file(out / "dropped.html", page(arguments.run, parts, lines, data, arguments.top, arguments.by).encode())
    print(f"{int((visits['weight'] == 0).sum())} of {len(visits)} visits dropped; {out / 'dropped.html'}, {out / 'dropped.csv'}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of memsieve-train, also of a run that goes on")
    parser.add_argument("--data", metavar="H5", help="the data set it trained on (default: data.train of the run's config.yaml)")
    parser.add_argument("--by", choices=("group", "sample"), default="group", help="count copies of one picture together, or every row "
                        "by itself (default: %(default)s)")
    parser.add_argument("--top", type=int, default=100, help="how many the page shows (default: %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="where page and CSV go (default: the run folder)")
    try:
        make(parser.parse_args(argv))
    except (ReportError, OSError) as error:
        print(f"ledger_view: {error}", file=sys.stderr)
        return 3
    except ImportError as error:
        print(f"ledger_view: {error}: pip install h5py numpy pillow matplotlib", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
