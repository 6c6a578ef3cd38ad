"""The pages of memsieve-audit's check-picture and prune."""

from memsieve.reports.page import line_chart


def drawings(audit, prompt):
    """{"own": address or None, "caption": addresses, "optimised": addresses} of a picture; {} if nothing was drawn."""
    row = next((row for row in audit.of_prompt(prompt) if "caption" in row), None)
    if row is None:
        return {"own": None, "caption": [], "optimised": []}
    found = {"own": audit.picture(row["own"]) if "own" in row else None}
    for how in ("caption", "optimised"):
        pictures = [audit.picture(name) for name in row.get(how, {}).get("pictures", [])]
        found[how] = [picture for picture in pictures if picture]
    return found


def losses(audit, prompt):
    return next((row["losses"] for row in audit.of_prompt(prompt) if "losses" in row), [])


def inverted(audit, prompt):
    """Pictures drawn from noise that was inverted for this one."""
    row = next((row["inversion"] for row in audit.of_prompt(prompt) if "inversion" in row), {})
    return [picture for picture in map(audit.picture, row.get("pictures", [])) if picture]


def share(found):
    """What add_verdicts counted: "3 of 8 (0.085 to 0.755), at best 0.912"."""
    if not found:
        return "n/a"
    interval = found["share"]
    return (f"{found['copies']} of {found['drawings']} ({interval['low']:.3f} to {interval['high']:.3f}), "
            f"at best {found['best']:.3f}")


def check_picture(audit, top):
    prompts = sorted(audit.summary["prompts"], key=lambda p: (p["verdict"] != "copied", p.get("log_error", 0)))[:top]
    shown = [{"prompt": prompt, "line": line_chart(losses(audit, prompt["prompt"])),
              "inverted": inverted(audit, prompt["prompt"]), **drawings(audit, prompt["prompt"])}
             for prompt in prompts]
    return {"shown": shown, "share": share}


def prune(audit, top, read):
    checked = "before" in audit.summary
    checks = [read(audit.folder / name) for name in ("before", "after")] if checked else []
    shown = []
    for prompt in audit.summary["prompts"][:top]:
        before, after = (drawings(check, prompt["prompt"]) for check in checks) if checked else ({}, {})
        shown.append({"prompt": prompt, "before": before, "after": after})
    return {"shown": shown, "checked": checked, "share": share}


def pages(audit_type):
    """By command, as reports.audit wants them; `audit_type` reads the folder of another audit."""
    return {"check-picture": check_picture, "prune": lambda audit, top: prune(audit, top, audit_type.read)}
