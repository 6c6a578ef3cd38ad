"""What all audits of the demo's two models say, as one set of figures and one page."""

from dataclasses import dataclass
from pathlib import Path

from memsieve.reports import audit_benchmark, page
from memsieve.reports.audit import Audit, interval
from memsieve.reports.audit_pictures import drawings, share
from memsieve.reports.program import InputError

AUDITS = ("detect_off", "detect_on", "check_off", "check_on", "explain", "mitigate", "benchmark", "prune", "canary", "canary_without",
          "unauthorised", "unauthorised_without")
# Of detect: the score that the filter trains with, too.
SCORE = "magnitude_first"


@dataclass
class Overview:
    folder: Path
    audits: dict  # of Audit by the names above

    @staticmethod
    def read(folder):
        return Overview(folder, {name: Audit.read(folder / name) for name in AUDITS})

    def summary(self, name):
        return self.audits[name].summary

    def methods(self):
        return {entry["method"]: entry for entry in self.summary("mitigate")["methods"]}

    def benchmark(self):
        """Figures of the benchmark by run and method; scripts/audit.sh names the model without the filter first."""
        found = {"off": {}, "on": {}}
        for entry in self.summary("benchmark")["table"]:
            trigger, general = entry["prompts"], entry["general"]
            found["on" if entry["model"] else "off"][entry["method"]] = {
                **{name: trigger[name]["estimate"] for name in ("similarity_max", "similarity_top3", "similarity_share")},
                **{f"general_{name}": general[name]["estimate"] for name in ("similarity_max", "similarity_to_plain", "clip")}}
        return found

    def figures(self):
        """What audit.json holds; docs/audit.md says what each is. Raises InputError for an audit that measured less."""
        try:
            return self._figures()
        except (KeyError, TypeError) as error:
            lacks = f"'{error.args[0]}'" if isinstance(error, KeyError) else "one of them"
            raise InputError(f"{self.folder}: the audits lack a figure ({lacks}); make them as scripts/audit.sh does") from None

    def _figures(self):
        pruned = self.summary("prune")["after"]
        return {
            **{f"detect_auc_{run}": self.summary(f"detect_{run}")["scores"][SCORE]["auc"]["estimate"] for run in ("off", "on")},
            **{f"copied_{run}": self.summary(f"check_{run}")["copied"]["estimate"] for run in ("off", "on")},
            "copies_unmitigated": self.methods()["none"]["copies"]["estimate"],
            "copies_mitigated": self.methods()["embedding"]["copies"]["estimate"],
            "copies_by_method": {name: entry["copies"]["estimate"] for name, entry in self.methods().items()},
            "benchmark": self.benchmark(),
            "copies_pruned": pruned["with_caption"]["share"]["estimate"],
            "copies_after_recovery": pruned["with_optimised_states"]["share"]["estimate"],
            "canary_p": self.summary("canary")["p_value"],
            "canary_p_without": self.summary("canary_without")["p_value"],
            **{name.replace("unauthorised", "unauthorised_p"): self.summary(name)["tests"][0]["p_value"]
               for name in ("unauthorised", "unauthorised_without")},
        }

    def pictures(self, name, top=8):
        """Per picture of a check: itself, drawn with the caption, drawn with optimised states."""
        audit = self.audits[name]
        return [{"caption": prompt["caption"], "verdict": prompt["verdict"], "drawn": drawings(audit, prompt["prompt"])}
                for prompt in audit.summary["prompts"][:top]]

    def page(self):
        return page.render("audit_overview.html.j2", title="What the demo's models have memorised", figures=self.figures(),
                           summary=self.summary, methods=self.methods(), pictures={run: self.pictures(f"check_{run}") for run in ("off", "on")},
                           score=SCORE, audits=AUDITS, interval=interval, share=share,
                           benchmark_plot=audit_benchmark.plot(self.summary("benchmark"), "general"))
