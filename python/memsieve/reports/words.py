"""Figures as words."""


def percent(value, digits=1):
    """0.125 -> "12.5%"; None -> "n/a"."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def fixed(value, digits):
    """0.125 -> "0.13" with 2 digits; None -> "n/a"."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def change(summary, name="on"):
    """Validation loss of a run against the plain run, as a signed percentage."""
    off, value = summary["val_loss_off"], summary[f"val_loss_{name}"]
    return "n/a" if not off or value is None else f"{100 * (value / off - 1):+.1f}%"
