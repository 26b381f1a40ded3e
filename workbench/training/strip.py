"""One conversation as the model reads it, in colour: which tokens are trained, and where images lie.

Knows: the terminal's colours and a notebook's. Does not know: how a conversation becomes tokens (`renderer.py`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from workbench.conversation import IMAGE_MARK, Conversation
from workbench.model.render_file import coloured
from workbench.training.examples import Reader, to_example
from workbench.training.sizes import Sizes

HTML = '<pre style="white-space:pre-wrap">{code}</pre>'


@dataclass(frozen=True)
class Strip:
    """The rendering of one conversation."""

    reader: Reader
    conversation: Conversation
    sizes: Sizes | None = None
    """Of its images, where the model makes more tokens of a larger one."""

    def text(self, console: Console | None = None) -> str:
        """With ANSI colours where `console` (standard output) has them, else with ⟦ and ⟧ around what is trained."""
        console = console or Console(highlight=False, soft_wrap=True)
        with console.capture() as captured:
            console.print(self._title(), self._shown(console), sep="\n", soft_wrap=True)
        return captured.get().rstrip("\n")

    def html(self) -> str:
        console = Console(file=io.StringIO(), record=True, force_terminal=True, color_system="truecolor", width=100)
        console.print(self._title(), self._shown(console), sep="\n", soft_wrap=True)
        return console.export_html(inline_styles=True, code_format=HTML)

    def _title(self) -> Text:
        return Text(f"— {self.conversation.id}: what the model reads; trained is what is marked", style="dim")

    def _shown(self, console: Console) -> Text:
        """The tokens as text; an image's many are folded into one mark with their number."""
        counts = to_example(self.conversation, self.reader, self.sizes).counts
        shown = coloured(self.reader.renderer, self.reader.renderer.render(self.conversation), console)
        folded = Text()
        for number, part in enumerate(shown.split(IMAGE_MARK, allow_blank=True)):
            if number:
                folded.append(f"[image: {counts[number - 1]} tokens]", style="cyan")
            folded.append_text(part)
        return folded
