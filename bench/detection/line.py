"""What a run showed, in one line."""

from . import book
from .shares import value


def percent(share):
    return "–" if share is None else f"{100 * share:.1f}"


def drawn(result):
    last = result["drawings"][-1]
    copies, cyclic = (value(book.of_drawings(part["copies"])) for part in (last, result["cyclic"]))
    return [f"copies {percent(copies)}%", f"cyclic {percent(cyclic)}%",
            f"correlation {last['correlation']:.3f} (ordinary {last['ordinary_correlation']:.3f})"]


def against(result, plain):
    """Validation loss, control and times against the plain run of the same seed."""
    words = []
    if result["validation"] and plain["validation"]:
        words.append(f"validation {100 * (book.validation_loss(result) / book.validation_loss(plain) - 1):+.1f}%")
    control = book.control(result, plain)
    if control is not None:
        words.append(f"control {percent(control)}%")
    for name, key in (("step", "step_ms"), ("run", "seconds")):
        if result[key] and plain[key]:
            words.append(f"{name} x{result[key] / plain[key]:.2f}")
    return words


def of(result, plain=None):
    words = [f"validation {book.validation_loss(result):.4f}"] if result["validation"] else []
    words += [f"{result['step_ms']:.0f} ms a step"] + (drawn(result) if result["repeated_rows"] else [])
    for rows in ("repeated", "ordinary"):
        shown = [value(quarter) for quarter in result.get("dropped", {}).get(rows, {}).get("quarters", [])]
        if any(share is not None for share in shown):
            words.append(f"{rows} dropped {'/'.join(map(percent, shown))}%")
    if plain is not None and result["rule"] != "off":
        words += ["against the plain run: " + ", ".join(against(result, plain))]
    return "; ".join(words)
