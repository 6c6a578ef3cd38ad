"""What memsieve-audit left in a folder, and the page of each of its commands."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from memsieve.reports import audit_benchmark, audit_pictures, page
from memsieve.reports.program import InputError


@dataclass
class Audit:
    folder: Path
    summary: dict
    rows: list  # of measurements.jsonl, without its first line

    @staticmethod
    def read(folder):
        folder = Path(folder)
        summary = read_json(folder / "summary.json", folder)
        lines = (folder / "measurements.jsonl").read_text(encoding="utf-8").split("\n")  # no other end of line: captions may hold one
        try:
            rows = [json.loads(line) for line in lines[1:] if line]
        except ValueError:
            raise InputError(f"{folder / 'measurements.jsonl'}: holds a line that is not JSON") from None
        return Audit(folder, summary, rows)

    def of_prompt(self, prompt, set_name="prompts"):
        return [row for row in self.rows if row.get("set") == set_name and row.get("prompt") == prompt]

    def picture(self, name):
        """A picture's file as the address of a picture that is part of the page; None if it is not there."""
        path = self.folder / name
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else None


def read_json(path, folder):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {path.name}; name the --out of a finished memsieve-audit") from None
    except ValueError:
        raise InputError(f"{path}: is not JSON") from None
    if not isinstance(value, dict) or "command" not in value:
        raise InputError(f"{path}: is no summary of memsieve-audit")
    return value


def interval(found):
    if found is None:
        return "n/a"
    low, high = (f"{value:.3f}" if value is not None else "?" for value in (found["low"], found["high"]))
    return f"{found['estimate']:.3f} ({low} to {high})"


def mean_steps(rows):
    columns = zip(*(row["magnitude"] for row in rows if "magnitude" in row))
    return [sum(column) / len(column) for column in columns]


def detect(audit, top):
    prompts = sorted(audit.summary["prompts"], key=lambda p: -p["magnitude_first"])[:top]
    shown = []
    for prompt in prompts:
        rows = audit.of_prompt(prompt["prompt"])
        pictures = [audit.picture(row["picture"]) for row in rows if "picture" in row]
        shown.append({"prompt": prompt, "pictures": [p for p in pictures if p], "steps": mean_steps(rows)})
    highest = max((max(entry["steps"]) for entry in shown if entry["steps"]), default=1)
    for entry in shown:
        entry["line"] = page.line_chart(entry["steps"], highest)
    names = list(audit.summary["scores"])
    return {"shown": shown, "names": names, "compared": any("auc" in s for s in audit.summary["scores"].values())}


def explain(audit, top):
    shown = audit.summary["prompts"][:top]
    for prompt in shown:
        highest = max((token["gradient"] for token in prompt["tokens"]), default=0)
        for token in prompt["tokens"]:
            token["share"] = token["gradient"] / highest if highest else 0
    return {"shown": shown}


def mitigate(audit, top):
    names = [entry["method"] for entry in audit.summary["methods"]]
    for entry in audit.summary["methods"]:
        for name in ("similarity_to_plain", "similarity", "copies"):
            entry.setdefault(name, None)
    highest = max(value for row in audit.rows for value in row["magnitude"])
    shown = []
    for prompt in audit.summary["prompts"][:top]:
        methods = []
        for name in names:
            rows = [row for row in audit.of_prompt(prompt["prompt"]) if row["method"] == name]
            pictures = [audit.picture(row["picture"]) for row in rows if "picture" in row]
            methods.append({"pictures": [p for p in pictures if p], "line": page.line_chart(mean_steps(rows), highest)})
        shown.append({"caption": prompt["caption"], "methods": methods})
    return {"shown": shown}


def canary(audit, top, width=300):
    shown = audit.summary["canaries"][:top]
    for entry in shown:
        low, high = min(entry["scores"]), max(entry["scores"])
        entry["marks"] = [(2 + (width - 4) * (score - low) / max(high - low, 1e-300), variant == entry["planted"])
                          for variant, score in enumerate(entry["scores"])]
        entry["marks"].sort(key=lambda mark: mark[1])  # the planted one on top
    return {"shown": shown}


def unauthorised(audit, top):
    return {"shown": sorted(audit.rows, key=lambda row: row["rank"])[:top]}


PAGES = {"detect": detect, "explain": explain, "mitigate": mitigate, "benchmark": audit_benchmark.benchmark, "canary": canary,
         "unauthorised": unauthorised, **audit_pictures.pages(Audit)}


def render(audit, top):
    command = audit.summary["command"]
    if command not in PAGES:
        raise InputError(f"{audit.folder}: no page is known for the command {command}")
    return page.render(f"audit_{command.replace('-', '_')}.html.j2", title=f"memsieve-audit {command}", summary=audit.summary,
                       interval=interval, **PAGES[command](audit, top))
