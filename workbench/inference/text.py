"""Tokens to text while they arrive: text that never has to be taken back.

Knows: characters whose bytes are split over tokens, tokenizers that write a space only between words, stop texts that
may begin in one token and end in a later one, and that answers have no white space at their ends.
Does not know: where tokens come from, end tokens, or who reads the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What decoders write for bytes that are not, or not yet, a character."""


class TextStream:
    """Turns tokens into pieces of text. All pieces joined are `text`: stripped, and cut before its first stop text."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = self._done = 0  # tokens from start to done are the context that decides on spaces
        self._held = ""  # decoded, but perhaps white space at the end or the beginning of a stop text

    def push(self, token: int) -> str:
        """The text that is certain after this token; empty while a character or a stop text may be incomplete."""
        self._ids.append(token)
        decoded = self._decode(self._ids[self._start :])
        if decoded.endswith(BROKEN):
            return ""
        return self._release(self._new(decoded), last=False)

    def finish(self) -> str:
        """The rest: called once, after the last token."""
        return self._release(self._new(self._decode(self._ids[self._start :])), last=True)

    def _new(self, decoded: str) -> str:
        context = self._decode(self._ids[self._start : self._done])
        self._start, self._done = self._done, len(self._ids)
        return decoded[len(context) :]

    def _release(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        if not self.text:  # white space nobody sees ends nothing: a first token is often " There", and stop may be " "
            self._held = self._held.lstrip()
        found = [index for index in map(self._held.find, self._stop) if index >= 0]
        self.stopped = bool(found)
        ended = self.stopped or last
        certain = min(found) if found else len(self._held) - (0 if last else self._beginning_of_stop())
        piece = self._held[:certain].rstrip()
        self._held = "" if ended else self._held[len(piece) :]
        self.text += piece
        return piece

    def _beginning_of_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for size in range(longest, 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
