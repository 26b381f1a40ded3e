"""Replies of teachers as turns, whatever shape a model chose to answer in.

Knows: JSON (also in a code fence, or with text around it), the blocks of LLaVA's seed examples (`Question:` and
`Answer:` between lines of `===`), and lines that begin with a role.
Does not know: whether what it says is true or good (`checks.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.data.boxes import inside, padded_box
from workbench.errors import DataError
from workbench.instruct.material import Material, Turns

Parse = Callable[[str, Material, np.random.Generator], Turns]
LETTER = "Answer with the option's letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."
REGION = "Please provide a short description for this region: {box}."
FIND = "Please provide the bounding box coordinate of the region this sentence describes: {phrase}."

_FENCE = re.compile(r"^```\w*\s*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
_BAR = re.compile(r"^\s*={3,}\s*$", re.MULTILINE)
_ASKS = r"question|q|user|human"
_ANSWERS = r"answer|a|assistant|gpt"
_SPEAKS = re.compile(rf"^[ \t]*[*#_]*({_ASKS}|{_ANSWERS})[ \t]*\d*[*_]*[ \t]*:[*_]*[ \t]*", re.I | re.MULTILINE)
_KEYS = (("question", "q", "user", "human", "prompt"), ("answer", "a", "assistant", "gpt", "response"))
_TEXT_KEYS = ("text", "caption", "description", "answer", "response")


class ReplyError(DataError):
    """A reply that is not what was asked for; it is kept with this reason."""


def schema(**properties: Any) -> dict[str, Any]:
    """A JSON schema of an object that has exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


TEXT = {"type": "string"}
PAIRS = schema(turns={"type": "array", "items": schema(question=TEXT, answer=TEXT)})
STATEMENT = schema(text=TEXT)
CHOICE = schema(question=TEXT, options={"type": "array", "items": TEXT}, answer=TEXT)
PHRASES = schema(phrases={"type": "array", "items": schema(number={"type": "integer"}, phrase=TEXT)})


def turns(text: str, material: Material, rng: np.random.Generator) -> Turns:
    """Questions and answers in order. Raises `ReplyError` where a question has no answer, or there is none."""
    found = _json(text)
    pairs = _spoken(text) if found is None else _pairs(found)
    if not pairs:
        raise ReplyError("reply", found=_shown(text), expected="questions with their answers")
    return pairs


def statement(*questions: str) -> Parse:
    """Parses a text that answers one of `questions`, drawn by the generator."""

    def parse(text: str, material: Material, rng: np.random.Generator) -> Turns:
        found = _json(text)
        said = text if found is None else _first_text(found)
        return [(questions[int(rng.integers(len(questions)))], _clean(said))]

    return parse


def short_answer(text: str, material: Material, rng: np.random.Generator) -> Turns:
    """As `turns`, each question with LLaVA's words for a short answer, each answer without a full stop."""
    return [
        (question if WORD in question else f"{question}\n{WORD}", answer.removesuffix("."))
        for question, answer in turns(text, material, rng)
    ]


def multiple_choice(text: str, material: Material, rng: np.random.Generator) -> Turns:
    """A question with options in LLaVA's shape, in random order, and the letter of the right one.

    The reply names the right option by its letter or its text. Raises `ReplyError` where it names none of them.
    """
    found = _json(text)
    asked = found if isinstance(found, Mapping) else _lettered(text)
    options = [_bare(str(option)) for option in asked.get("options") or ()]
    right = _right_option(str(asked.get("answer", "")), options)
    question = str(asked.get("question", "")).strip()
    if not question or right is None or len(set(options)) < max(2, len(options)):
        raise ReplyError("reply", found=_shown(text), expected="a question, different options, and which is right")
    order = [int(index) for index in rng.permutation(len(options))]
    listed = "\n".join(f"{chr(65 + place)}. {options[index]}" for place, index in enumerate(order))
    return [(f"{question}\n{listed}\n{LETTER}", chr(65 + order.index(right)))]


def grounding(text: str, material: Material, rng: np.random.Generator) -> Turns:
    """Phrases for numbered boxes as LLaVA's questions about regions, both ways; boxes come from the annotations."""
    found = _json(text)
    named = found.get("phrases", []) if isinstance(found, Mapping) else found
    if not isinstance(named, Sequence) or isinstance(named, str):
        named = [{"number": line[1], "phrase": line[2]} for line in re.finditer(r"^\s*(\d+)[.:)]\s*(.+)$", text, re.M)]
    boxed = [thing for thing in material.things if thing.box]
    made: Turns = []
    for item in named:
        number = _number(item, len(boxed))
        size = _size(material)
        box = box_text(padded_box(inside(boxed[number - 1].box, *size), *size))  # type: ignore[arg-type]
        phrase = _clean(str(item.get("phrase", ""))).removesuffix(".")
        if rng.random() < 0.5:
            made.append((REGION.format(box=box), phrase))
        else:
            made.append((FIND.format(phrase=phrase), box))
    if not made:
        raise ReplyError("reply", found=_shown(text), expected="a phrase for each numbered box")
    return made


def box_text(box: Sequence[float]) -> str:
    """`[0.12, 0.30, 0.25, 0.44]`: two decimals, as in LLaVA's instruction mix."""
    return "[" + ", ".join(f"{value:.2f}" for value in box) + "]"


# --- shapes of a reply ----------------------------------------------------------------------------------------


def _json(text: str) -> Any:
    """The JSON value that a reply is or holds (fenced, or between other words); None where it holds none."""
    fenced = _FENCE.search(text)
    for candidate in (text, fenced[1] if fenced else ""):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, (dict, list)):
            return value
    for start in (match.start() for match in re.finditer(r"[{\[]", text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            return value
    if re.match(r"\s*(```\w*\s*)?[{\[]\s*\"", text):
        raise ReplyError("reply", found=f"JSON that is cut off or damaged ({_shown(text)})", expected="whole JSON")
    return None


def _pairs(value: Any) -> Turns:
    """Pairs from a list of them under any key, from a flat list of messages, or from one pair."""
    if isinstance(value, Mapping):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if lists else [value]
    items = [item for item in value if isinstance(item, Mapping)]
    if any(key in item for item in items for key in ("role", "from")):
        return _alternating([(_who(item), str(item.get("content", item.get("value", "")))) for item in items])
    made = []
    for item in items:
        named = {str(key).lower(): value for key, value in item.items()}
        pair = [next((named[key] for key in keys if key in named), None) for keys in _KEYS]
        if None in pair:
            raise ReplyError("reply", found=_shown(json.dumps(item)), expected="a question and its answer")
        made.append((_clean(str(pair[0])), _clean(str(pair[1]))))
    return made


def _who(item: Mapping[str, Any]) -> str:
    return "asks" if str(item.get("role", item.get("from"))).lower() in _ASKS.split("|") else "answers"


def _spoken(text: str) -> Turns:
    """Pairs from text whose turns begin with `Question:` and `Answer:` or with roles, with or without `===` lines."""
    pieces = _SPEAKS.split(_BAR.sub("", text))
    said = list(zip(pieces[1::2], pieces[2::2], strict=True))
    return _alternating([("asks" if who.lower() in _ASKS.split("|") else "answers", words) for who, words in said])


def _alternating(said: Sequence[tuple[str, str]]) -> Turns:
    who = [speaker for speaker, _ in said]
    if who != ["asks", "answers"] * (len(who) // 2):
        raise ReplyError("reply", found=f"turns of {', '.join(who[:6])}", expected="a question, then its answer, ...")
    words = [_clean(text) for _, text in said]
    return list(zip(words[::2], words[1::2], strict=True))


def _lettered(text: str) -> dict[str, Any]:
    """A question in lines, its options (`A. ...`) one a line, and `Answer: B`."""
    options = re.findall(r"^[ \t]*\(?([A-H])[.):][ \t]*(.+)$", text, re.MULTILINE)
    answer = re.search(r"^[ \t*]*(?:correct )?answer[ \t*]*:[ \t*]*(.+)$", text, re.IGNORECASE | re.MULTILINE)
    first = re.search(r"^[ \t]*\(?[A-H][.):]", text, re.MULTILINE)
    question = _SPEAKS.sub("", text[: first.start()]) if first else ""
    return {"question": question, "options": [words for _, words in options], "answer": answer[1] if answer else ""}


def _right_option(answer: str, options: Sequence[str]) -> int | None:
    bare = _bare(answer)
    if bare in options:
        return options.index(bare)
    letter = re.match(r"\(?([A-Ha-h])([).:]|$)", answer.strip())
    index = ord(letter[1].upper()) - 65 if letter else -1
    return index if 0 <= index < len(options) else None


def _bare(option: str) -> str:
    return re.sub(r"^\(?[A-H][.):]\s+", "", option.strip()).strip().removesuffix(".")


def _number(item: Any, count: int) -> int:
    number = item.get("number") if isinstance(item, Mapping) else None
    whole = int(str(number)) if str(number).isdecimal() else 0
    if not 1 <= whole <= count:
        raise ReplyError("reply", found=f"box number {number}", expected=f"1 to {count}")
    return whole


def _size(material: Material) -> tuple[int, int]:
    if material.image is None or not material.image.width or not material.image.height:
        raise ReplyError("reply", found="an image of unknown size", expected="its width and height")
    return material.image.width, material.image.height


def _first_text(value: Any) -> str:
    if isinstance(value, Mapping):
        texts = [value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)]
        texts += [item for item in value.values() if isinstance(item, str)]
        if texts:
            return texts[0]
    raise ReplyError("reply", found=_shown(json.dumps(value)), expected="one text")


def _clean(text: str) -> str:
    """Without quotation marks around all of it, and without white space at its ends."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1] else text


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 120 else f"{words[:117]}...")
