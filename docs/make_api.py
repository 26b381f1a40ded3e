"""Writes `api.md`, the one-page reference of the public names, from their docstrings: `python docs/make_api.py`.

Knows: how a signature and a docstring become Markdown, and under which heading a name stands.
Does not know: what any name does; a test fails where the page is stale.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import workbench

PAGE = Path(__file__).with_name("api.md")
HEADINGS = {
    "The way through": ("quickstart", "doctor", "errors"),
    "Values": ("conversation", "recipe", "run", "chat_model", "losses"),
    "Images": ("data", "curation"),
    "Conversations": ("instruct",),
    "Training": ("background", "training"),
    "Models": ("model", "inference", "remote"),
    "Evaluation": ("evaluation",),
    "In a notebook": ("widgets",),
    "Serving and giving away": ("serving",),
}
"""The rooms whose public names stand under a heading."""
INTRODUCTION = """\
# The public names

`import workbench as wb`; every name below is `wb.NAME`, loaded on first use. This page is made of the docstrings by
`python docs/make_api.py`; each example on it is run as a test, in a folder with a small dataset `data` (opened as
`dataset`) and a run `runs/align`. Whatever a person can get wrong raises a `WorkbenchError` that says where, what was
found, what was expected and what to do.
"""
_LONGEST = 40
"""Characters of a default value that is shown."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for heading, rooms in HEADINGS.items():
        names = [name for name, home in workbench._HOMES.items() if home.split(":")[0].split(".")[0] in rooms]
        parts += [f"## {heading}\n", *(_entry(name, getattr(workbench, name)) for name in names)]
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    """A function, or a class with its public methods."""
    title = f"### `{name}`" if _plain_fields(value) else f"### `{name}{_signature(value)}`"
    lines = [title, "", _text(value), ""]
    lines += [f"- `.{method}{_signature(found)}`: {_first_line(found)}" for method, found in _methods(value)]
    return "\n".join([*lines, ""] if lines[-1] else lines)


def _plain_fields(value: Any) -> bool:
    """Whether it is a recipe's section, whose signature would be its fields: the recipe's own help tells of those."""
    return inspect.isclass(value) and hasattr(value, "model_fields")


def _signature(value: Callable[..., Any]) -> str:
    """Names and defaults; types are in the docstring's words and in the code."""
    signature = inspect.signature(value)
    bare = [
        one.replace(annotation=one.empty, default=one.default if one.default is one.empty else _Shown(one.default))
        for one in signature.parameters.values()
        if one.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


class _Shown:
    """A default value as it is shown."""

    def __init__(self, value: object) -> None:
        text = value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)
        self.text = text if len(text) <= _LONGEST and " at 0x" not in text else "..."

    def __repr__(self) -> str:
        return self.text


def _text(value: Any) -> str:
    """The docstring, its examples as code."""
    parts = (inspect.getdoc(value) or "").split("\n\n")
    return "\n\n".join(f"```python\n{part}\n```" if part.startswith(">>>") else part for part in parts)


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    if not inspect.isclass(value) or issubclass(value, Exception):
        return
    for name, found in vars(value).items():
        found = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
        if not name.startswith("_") and inspect.isfunction(found) and found.__doc__:
            yield name, found


def _first_line(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
