"""How values show themselves as the last line of a notebook's cell.

Knows: a small block of HTML that is right in a light and in a dark notebook, and that every text in it is escaped.
Does not know: what any value is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = "font:14px/1.5 system-ui,sans-serif;max-width:60rem"
_CELL = "text-align:left;vertical-align:baseline;font-size:14px;padding:1px 1.2em 1px 0"
_NAME = f"{_CELL};opacity:.65;white-space:nowrap"


class AsPrinted:
    """Shows itself in a notebook as `print` shows it, not as the fields it is made of."""

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/plain": str(self)}


def block(title: str, facts: Mapping[str, object] | None = None, more: str = "", *, note: str = "") -> str:
    """HTML: a bold title with a note beside it, a table of facts (those that are None left out), then `more`, HTML."""
    rows = "".join(
        f'<tr style="background:none"><td style="{_NAME}">{escape(name)}</td>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in (facts or {}).items()
        if value is not None
    )
    table = f'<table style="border-collapse:collapse;margin:.3em 0">{rows}</table>' if rows else ""
    head = f'<b>{escape(title)}</b> <span style="opacity:.65">{escape(note)}</span>'
    return f'<div style="{_STYLE}">{head}{table}{more}</div>'


def folded(title: str, text: str) -> str:
    """HTML: a line that opens to show `text` as it is written."""
    return f'<details><summary style="cursor:pointer">{escape(title)}</summary><pre>{escape(text)}</pre></details>'


def turns(said: Iterable[tuple[str, str, Iterable[str]]]) -> str:
    """HTML: who said what, of (role, text, names of pictures)."""
    chip = '<code style="border:1px solid #8886;border-radius:4px;padding:0 .4em">{}</code> '
    parts = []
    for role, text, pictures in said:
        side = "border-left:3px solid #3b82f6" if role == "user" else "border-left:3px solid #10b981"
        shown = "".join(chip.format(escape(name)) for name in pictures)
        parts.append(
            f'<div style="{side};padding:.1em .8em;margin:.4em 0;white-space:pre-wrap">'
            f'<span style="opacity:.65">{escape(role)}</span> {shown}{escape(text)}</div>'
        )
    return "".join(parts)


def bars(values: Mapping[str, float]) -> str:
    """HTML: a bar for each name, of values from 0 to 1."""
    lines = "".join(
        f'<tr style="background:none"><td style="{_NAME}">{escape(name)}</td><td style="{_CELL}">{value:.3f}'
        f'</td><td style="width:12rem;text-align:left"><div style="background:#3b82f6;height:.7em;'
        f'width:{100 * min(max(value, 0.0), 1.0):.1f}%"></div></td></tr>'
        for name, value in values.items()
    )
    return f'<table style="border-collapse:collapse;margin:.3em 0">{lines}</table>' if lines else ""
