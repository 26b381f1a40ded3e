"""A second opinion on questions about scenes: the only right answer, from the annotation's JSON alone.

Knows: the questions by their words, and the geometry of boxes: a place is where a box's centre lies, a relation is
between centres, a size is a diameter. Colors and shapes are read from the annotation.
Does not know: how the questions were made. It shares no code with the rules teacher, so that an error in one is not
repeated in the other; nor does it read the places and sizes that the annotation states.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ILL_POSED = "ill-posed"
"""Ambiguous, or takes for granted what is not so (a refusal may), or asks what is a matter of opinion."""
Judge = Callable[..., str]
COUNTS = ["none", "one", "two", "three", "four"]
APART = 7.9
"""Pixels between centres from which one thing is plainly left of, right of, above or below another."""
SHORT = "\nAnswer the question using a single word or phrase."
CHOOSE = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Seen:
    """One thing, as its box shows it; `x` and `y` are its centre in pixels, `where` row and column from 0 to 2."""

    color: str
    shape: str
    x: float
    y: float
    diameter: float
    where: tuple[int, int]
    corners: str

    @property
    def called(self) -> str:
        return self.color + " " + self.shape

    @property
    def size(self) -> str:
        return "large" if self.diameter > 25 else "small"

    @property
    def place(self) -> str:
        return ["top", "middle", "bottom"][self.where[0]] + " " + ["left", "center", "right"][self.where[1]]


def answer(task: str, question: str, objects: str, width: int = 96, height: int = 96) -> str:
    """The only right answer to a question of a task, or `ILL_POSED`. `objects`: the annotation as JSON.

    Raises ValueError for a question that is none of those it knows.
    """
    seen = _look(objects, width, height)
    if task == "multiple_choice":
        return _letter(question, seen)
    if task == "short_answer":
        if not question.endswith(SHORT):
            raise ValueError(f"no words for a short answer: {question!r}")
        question = question.removesuffix(SHORT)
    return _judge(REFUSALS if task == "refusal" else QUESTIONS, question, seen)


def _judge(forms: Mapping[str, Judge], question: str, seen: list[Seen]) -> str:
    for form, judge in forms.items():
        match = re.fullmatch(form, question)
        if match:
            return judge(seen, *match.groups())
    raise ValueError(f"an unknown question: {question!r}")


def _look(objects: str, width: int, height: int) -> list[Seen]:
    """The things in reading order."""
    seen = []
    for item in json.loads(objects):
        left, top, right, bottom = item["box"]
        x, y = (left + right) / 2, (top + bottom) / 2
        where = int(y // (height / 3)), int(x // (width / 3))
        square = max(width, height)
        right_shift, down_shift = (square - width) // 2, (square - height) // 2
        corners = (left + right_shift, top + down_shift, right + right_shift, bottom + down_shift)
        text = "[" + ", ".join(format(corner / square, ".2f") for corner in corners) + "]"
        seen.append(Seen(item["color"], item["shape"], x, y, right - left, where, text))
    return sorted(seen, key=lambda thing: thing.where)


def _only(things: Sequence[Seen]) -> Seen | None:
    return things[0] if len(things) == 1 else None


def _of(seen: Sequence[Seen], what: str, value: str) -> Seen | None:
    """The only thing of which `what` (an attribute of `Seen`) is `value`; None where there is none, or several."""
    return _only([thing for thing in seen if getattr(thing, what) == value])


def _a(words: str) -> str:
    return ("an " if re.match("[aeiou]", words) else "a ") + words


def _letter(question: str, seen: list[Seen]) -> str:
    """Ill-posed unless exactly one of two or more different options is right."""
    body = re.fullmatch(r"(.+?)((?:\n[A-H]\. [^\n]+){2,})" + re.escape(CHOOSE), question)
    if body is None:
        raise ValueError(f"no multiple choice: {question!r}")
    lines = re.findall(r"\n([A-H])\. ([^\n]+)", body[2])
    options = [option for _, option in lines]
    truth = _judge(QUESTIONS, body[1], seen)
    right = [letter for letter, option in lines if option == truth]
    lettered = "".join(letter for letter, _ in lines) == "ABCDEFGH"[: len(lines)]
    return right[0] if len(right) == 1 and len(set(options)) == len(options) and lettered else ILL_POSED


# --- one judge a kind of question -----------------------------------------------------------------------------


def caption(seen: list[Seen]) -> str:
    said = [f"{_a(thing.size)} {thing.called} at the {thing.place}" for thing in seen]
    return " and ".join([", ".join(said[:-1]), said[-1]] if said[1:] else said)


def detail(seen: list[Seen]) -> str:
    many = f"There are {COUNTS[len(seen)]} objects." if len(seen) > 1 else "There is one object."
    return many + "".join(f" A {thing.size} {thing.called} is at the {thing.place}." for thing in seen)


def count(seen: list[Seen]) -> str:
    return str(len(seen))


def color_of_shape(seen: list[Seen], shape: str) -> str:
    thing = _of(seen, "shape", shape)
    return thing.color if thing else ILL_POSED


def color_at(seen: list[Seen], place: str) -> str:
    thing = _of(seen, "place", place)
    return thing.color if thing else ILL_POSED


def shape_of_color(seen: list[Seen], color: str) -> str:
    thing = _of(seen, "color", color)
    return thing.shape if thing else ILL_POSED


def shape_at(seen: list[Seen], place: str) -> str:
    thing = _of(seen, "place", place)
    return thing.shape if thing else ILL_POSED


def size(seen: list[Seen], called: str) -> str:
    thing = _of(seen, "called", called)
    return thing.size if thing else ILL_POSED


def place(seen: list[Seen], called: str) -> str:
    thing = _of(seen, "called", called)
    return thing.place if thing else ILL_POSED


def exists(seen: list[Seen], article: str, called: str) -> str:
    if _a(called) != f"{article} {called}":
        return ILL_POSED
    return "yes" if any(thing.called == called for thing in seen) else "no"


def relation(seen: list[Seen], called: str, word: str, other: str) -> str:
    one, two = _of(seen, "called", called), _of(seen, "called", other)
    if one is None or two is None or one is two:
        return ILL_POSED
    right, down = two.x - one.x, two.y - one.y
    ahead = {"left of": right, "right of": -right, "above": down, "below": -down}[word]
    return ILL_POSED if abs(ahead) < APART else "yes" if ahead > 0 else "no"


def remain(seen: list[Seen], called: str) -> str:
    if _of(seen, "called", called) is None:
        return ILL_POSED
    there = f"There are {COUNTS[len(seen)]} objects" if len(seen) > 1 else "There is one object"
    return f"{there}, so {COUNTS[len(seen) - 1]} would remain."


def same_color(seen: list[Seen], place: str, other: str) -> str:
    one, two = _of(seen, "place", place), _of(seen, "place", other)
    if one is None or two is None or one is two:
        return ILL_POSED
    if one.color == two.color:
        return f"Yes, both are {one.color}."
    return f"No, one is {one.color} and the other is {two.color}."


def region(seen: list[Seen], corners: str) -> str:
    thing = _of(seen, "corners", corners)
    return "the " + thing.called if thing else ILL_POSED


def find(seen: list[Seen], called: str) -> str:
    thing = _of(seen, "called", called)
    return thing.corners if thing else ILL_POSED


# --- refusals: the same questions, answered in sentences, and what is taken for granted need not be so --------


def _said(judge: Judge, attribute: str, sentence: str) -> Judge:
    def told(seen: list[Seen], noun: str) -> str:
        if not any(getattr(thing, attribute) == noun for thing in seen):
            return f"There is no {noun} in the image."
        found = judge(seen, noun)
        return found if found == ILL_POSED else sentence.format(noun=noun, found=found)

    return told


def exists_said(seen: list[Seen], article: str, called: str) -> str:
    found = exists(seen, article, called)
    yes, no = f"Yes, there is {article} {called} in the image.", f"No, there is no {called} in the image."
    return {"yes": yes, "no": no}.get(found, ILL_POSED)


QUESTIONS: dict[str, Judge] = {
    r"Describe the image briefly\.": caption,
    r"Describe the image in detail\.": detail,
    r"How many objects are there\?": count,
    r"What color is the object at the (\w+ \w+)\?": color_at,
    r"What color is the (\w+)\?": color_of_shape,
    r"What shape is the (\w+) object\?": shape_of_color,
    r"What shape is at the (\w+ \w+)\?": shape_at,
    r"Is the (\w+ \w+) small or large\?": size,
    r"Where is the (\w+ \w+)\?": place,
    r"Is there (an?) (\w+ \w+)\?": exists,
    r"Is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?": relation,
    r"How many objects would remain without the (\w+ \w+)\?": remain,
    r"Do the objects at the (\w+ \w+) and the (\w+ \w+) have the same color\?": same_color,
    r"Please provide a short description for this region: (\[[^\]]+\])\.": region,
    r"Please provide the bounding box coordinate of the region this sentence describes: the (\w+ \w+)\.": find,
}
REFUSALS: dict[str, Judge] = {
    r"Is there (an?) (\w+ \w+) in the image\?": exists_said,
    r"Where is the (\w+ \w+)\?": _said(place, "called", "The {noun} is at the {found}."),
    r"Is the (\w+ \w+) small or large\?": _said(size, "called", "The {noun} is {found}."),
    r"What color is the (\w+)\?": _said(color_of_shape, "shape", "The {noun} is {found}."),
}
"""Each kind of question by its words; the groups are what its judge is given after the scene."""
