"""Widgets without a kernel: one piece of HTML that needs no script and no other file, in a light and a dark notebook.

Knows: the templates `*.html.jinja`, and that every text in them is escaped. Does not know: widgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from workbench.report import curve_svg

_LINES = ("training", "validation")


def as_html(state: Mapping[str, Any], curves: Mapping[str, Any], answers: Mapping[str, Any]) -> str:
    """What `Watch.look` gave."""
    loss = curves.get("loss", {})
    lines = {name: [(x, y) for x, y in loss.get(name, ())] for name in _LINES}
    return page("live", state=state, svg=curve_svg(lines) if any(lines.values()) else "", answers=answers)


def page(name: str, **values: Any) -> str:
    """The template of the widget `name` with these values."""
    pages = Environment(loader=PackageLoader("workbench.widgets", "."), autoescape=True, trim_blocks=True)
    return pages.get_template(f"{name}.html.jinja").render(**values)
