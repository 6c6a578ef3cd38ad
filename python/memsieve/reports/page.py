"""HTML pages from templates/: whatever a page shows lies in the page itself, and every value is escaped."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from memsieve.reports.words import fixed, percent

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


def png(pixels):
    """uint8 [3, H, W] -> the address of a PNG that is part of the page."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(template, **values):
    """-> the page as text. What a template names and `values` lacks is an error."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"percent": percent, "fixed": fixed, "png": png}
    return environment.get_template(template).render(values)


def line_chart(values, top=None, width=180, height=40):
    """Points of a line from left to right, 0 at the bottom and `top` (None = the highest value) at the top."""
    top = max(values, default=1) if top is None else top
    step = width / max(len(values) - 1, 1)
    return [(i * step, height - height * value / max(top, 1e-12)) for i, value in enumerate(values)]
