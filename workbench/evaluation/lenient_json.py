"""JSON as people publish it: one value, one object a line, objects without brackets around them, almost JSON.

Knows: trailing commas, single quotes, Python's True and None, NaN, comments, a text cut off at its end.
Does not know: what the values mean; `score_files` makes rows of them.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_DECODER = json.JSONDecoder(strict=False)  # strict=False: a raw line break inside a text is kept
_TOKENS = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*")|(?P<single>'(?:[^'\\]|\\.)*')|(?P<comment>//[^\n]*|/\*.*?\*/)"""
    r"""|(?P<comma>,(?=\s*[\]}]))|(?P<word>[A-Za-z_]\w*)""",
    re.DOTALL,
)
_WORDS = {"None": "null", "True": "true", "False": "false", "nan": "NaN", "undefined": "null", "inf": "Infinity"}
_BETWEEN = re.compile(r"[\s,;\[\]\x1e\ufeff]*")
"""What may stand between two objects of a list whose brackets are missing or never closed."""


def parse(text: str) -> tuple[list[Any], list[int]]:
    """The values of a text, and the numbers of the lines (from 1) whose value could not be read at all.

    A text that is JSON gives its one value. Anything else gives every object in it, in order.

    >>> parse("{'id': 1, 'ok': True,},\\n{\\"id\\": 2}\\n{\\"id\\": ")
    ([{'id': 1, 'ok': True}, {'id': 2}], [3])
    """
    try:
        return [json.loads(text, strict=False)], []
    except ValueError:
        pass
    values, lost = _walk(text)
    if lost:  # only then: repairing reads the whole text token by token
        mended, still = _walk(_repair(text))
        if len(still) <= len(lost) and len(mended) >= len(values):
            return mended, still
    return values, lost


def _walk(text: str) -> tuple[list[Any], list[int]]:
    values: list[Any] = []
    lost: list[int] = []
    position = _after(text, 0)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
            values.append(value)
        except ValueError:
            lost.append(text.count("\n", 0, position) + 1)
            following = text.find("\n", position)
            position = len(text) if following < 0 else following
        position = _after(text, position)
    if len(lost) > 1 and not any(isinstance(value, dict | list) for value in values):
        return [], lost[:1]  # prose, or one broken object spread over many lines
    return values, lost


def _after(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return found.end() if found else position


def _repair(text: str) -> str:
    """The same text with strict quotes, words and commas; what stands inside a text is not touched."""

    def strict(found: re.Match[str]) -> str:
        piece = found.group()
        if found.lastgroup == "single":
            try:
                return json.dumps(str(ast.literal_eval(piece.replace("\n", "\\n"))))
            except (SyntaxError, ValueError):
                return json.dumps(piece[1:-1])
        if found.lastgroup in ("comment", "comma"):
            return ""
        return _WORDS.get(piece, piece) if found.lastgroup == "word" else piece

    return _TOKENS.sub(strict, text)
