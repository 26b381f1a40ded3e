"""The live view without a kernel: one piece of HTML with figures, curves and answers as they were.

Knows: how it looks in a light and a dark notebook. Does not know: widgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from workbench.report import curve_svg

_LINES = ("training", "validation")


def as_html(state: Mapping[str, Any], curves: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """What `Watch.look` gave as HTML that needs nothing else; every text in it is escaped."""
    loss = curves.get("loss", {})
    lines = {name: [(x, y) for x, y in loss.get(name, ())] for name in _LINES}
    pages = Environment(loader=PackageLoader("workbench.widgets", "."), autoescape=True, trim_blocks=True)
    page = pages.get_template("static.html.jinja")
    return page.render(state=state, svg=curve_svg(lines) if any(lines.values()) else "", answers=answers)
