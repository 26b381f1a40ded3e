"""`workbench render`: what a model would read of a LLaVA file, and which of it is trained on.

Knows: how a file's conversations become lines of JSON, and how the trained tokens are shown in colour.
Does not know: how either is made (`renderer.py`), or what a LLaVA file looks like (`data/formats.py`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from workbench.conversation import IMAGE_MARK, Conversation
from workbench.data.formats import read_conversations
from workbench.errors import WorkbenchError
from workbench.model.pieces import pieces
from workbench.model.renderer import Rendered, Renderer
from workbench.model.templates import Template
from workbench.model.tokenizers import load_tokenizer


def render_file(
    file: str | Path,
    template: str | Template,
    tokenizer: str | Path,
    *,
    show: bool = False,
    out: TextIO | None = None,
    shown: TextIO | None = None,
) -> int:
    """Write one JSON object per conversation to `out` (standard output); return 1 if one could not be rendered, else 0.

    `{"id", "ids", "labels"}` with the file's own id, each image the single id -200 and ignored labels -100; or
    `{"id", "error"}`. With `show` the text goes to `shown` (standard error) with its trained tokens in colour.
    """
    renderer = Renderer(load_tokenizer(tokenizer), template)
    out = out or sys.stdout
    console = Console(file=shown or sys.stderr, highlight=False, soft_wrap=True)
    failed = 0
    for record in read_conversations(file):
        line, rendered = _line(renderer, record)
        failed += rendered is None
        print(json.dumps(line, ensure_ascii=False), file=out)
        if show:
            console.print(Text(f"— {line['id']}", style="dim"))
            console.print(
                Text(line["error"], style="red") if rendered is None else coloured(renderer, rendered, console)
            )
    return 1 if failed else 0


def _line(renderer: Renderer, record: Any) -> tuple[dict[str, Any], Rendered | None]:
    """The object that is printed for one record of the file, and the rendering if there is one."""
    if not isinstance(record, Conversation):
        return {"id": record.id, "error": record.error}, None
    name = record.source.get("foreign_id", record.id)
    try:
        rendered = renderer.render(replace(record, id=str(name)))  # an error names it as the file does
    except WorkbenchError as error:
        return {"id": name, "error": str(error)}, None
    return {"id": name, "ids": rendered.ids, "labels": rendered.labels}, rendered


def coloured(renderer: Renderer, rendered: Rendered, console: Console) -> Text:
    """The ids as text, the trained ones in colour, or between ⟦ and ⟧ where `console` has no colour."""
    plain = console.color_system is None
    shown = Text()
    for (image, trained), run in groupby(pieces(renderer, rendered), lambda piece: (piece.is_image, piece.trained)):
        text = "".join(IMAGE_MARK if image else piece.text for piece in run)
        text = f"⟦{text}⟧" if trained and plain else text
        shown.append(text, style="cyan" if image else "bold black on green" if trained else "")
    return shown
