"""The page a person opens after a run: figures, loss curves, answers before and after.

Knows: how to draw curves as SVG and put pictures into the page, so that one file can be mailed.
Does not know: how anything on it was measured; it is handed finished numbers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image as PILImage

from workbench.resources import write_atomic

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 440, 200, 38, 22


def write_report(path: Path, values: Mapping[str, Any]) -> Path:
    """Render `report.html.jinja` with `values` (escaped, but for the curves) and write it atomically."""
    pages = Environment(loader=PackageLoader("workbench", "."), autoescape=True, trim_blocks=False)
    write_atomic(path, pages.get_template("report.html.jinja").render(**values))
    return path


def picture_source(picture: PILImage.Image, side: int = 288) -> str:
    """A data URI of the picture, at most `side` pixels wide and high; small ones stay as they are.

    PNG for drawings; JPEG where that takes less than half, as for photos.
    """
    shown = picture.convert("RGB")
    shown.thumbnail((side, side))
    png, jpeg = _bytes(shown, "PNG", optimize=True), _bytes(shown, "JPEG", quality=85)
    kind, data = ("jpeg", jpeg) if 2 * len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _bytes(picture: PILImage.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def curve_svg(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Lines of (step, value) as an SVG with two axes; the first line is thin and blue, the second orange."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return Markup("<p>no steps were logged</p>")
    x_high = max(x for x, _ in points) or 1
    y_low, y_high = min(0.0, *(y for _, y in points)), max(y for _, y in points) or 1.0

    def place(x: float, y: float) -> str:
        across = _LEFT + (_WIDTH - _LEFT - 8) * x / x_high
        down = 8 + (_HEIGHT - _BOTTOM - 8) * (1 - (y - y_low) / (y_high - y_low or 1))
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img">']
    for share in (0.0, 0.5, 1.0):
        value = y_low + (y_high - y_low) * share
        start, end = place(0, value), place(x_high, value)
        (x0, y0), (x1, y1) = start.split(","), end.split(",")
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y0) + 4}" text-anchor="end">{value:.2f}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">step 0</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{x_high:g}</text>')
    for color, width, line in zip(("var(--one)", "var(--two)"), (1.5, 2.5), lines.values(), strict=False):
        path = " ".join(place(x, y) for x, y in line)
        if len(line) == 1:  # a line of one point would draw nothing
            across, down = path.split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3.5" fill="{color}"/>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>')
    return Markup("".join([*parts, "</svg>"]))
