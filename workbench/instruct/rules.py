"""The rule-based teacher: exactly right answers from what is known about an image, without a network.

Knows: how each task is answered from annotations, captions or a class, and its fixed words.
Does not know: what other teachers are asked (`tasks.py`), which images there are, how conversations are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from workbench.data import scene_text
from workbench.data.boxes import Box, inside, padded_box
from workbench.data.scenes import COLORS, COLUMNS, PLACES, ROWS, SHAPES, SIZE_NAMES, Scene
from workbench.instruct.material import Material, Thing, Turns
from workbench.instruct.parse import FIND, LETTER, REGION, WORD, box_text
from workbench.instruct.words import plural_of

BRIEF = "Describe the image briefly."
DETAIL = "Describe the image in detail."
WHICH = "Which caption fits?"
TURNS_PER_CONVERSATION = 5
MOST_LISTED = 20
"""More classes than this are not listed in a question."""
CAPTIONS_LISTED = 4
WHICH_THING = "Which of these is in the image?"
OPTIONS = 4
"""At most, of a multiple choice."""
NAMELESS = "object"
"""What an annotated thing without a label is called; nothing is asked about such."""
ALL_ANSWERS: dict[str, Sequence[str]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "place": PLACES,
    "count": ("1", "2", "3", "4", "5", "6"),
    "size": SIZE_NAMES,
}
"""What a multiple choice about a scene offers, by type of question."""

Choice = tuple[str, str, Sequence[str]]
"""A question, its right answer, and wrong ones."""


def write_caption(material: Material, rng: np.random.Generator) -> Turns:
    """For stage 1: the template `plain` shows the answer alone."""
    if material.scene is not None:
        return [(BRIEF, scene_text.caption(material.scene))]
    if material.captions:
        return [(BRIEF, str(material.captions[int(rng.integers(len(material.captions)))]))]
    return [(BRIEF, f"photo of {material.label}")] if material.label else []


def write_conversation(material: Material, rng: np.random.Generator) -> Turns:
    """Several short questions and answers."""
    if material.scene is not None:
        asked = scene_text.questions(material.scene, rng, TURNS_PER_CONVERSATION)
        return [(question.text, question.answer) for question in asked]
    turns: Turns = []
    if material.label:
        listed = rng.random() < 0.5
        turns.append((class_question(material, rng) if listed else material.question, material.label))
    if material.captions:
        turns += which_caption(material, rng)
        turns.append((BRIEF, str(material.captions[int(rng.integers(len(material.captions)))])))
    return turns


def write_detail(material: Material, rng: np.random.Generator) -> Turns:
    return [(DETAIL, scene_text.detail(material.scene))] if material.scene is not None else []


def write_reasoning(material: Material, rng: np.random.Generator) -> Turns:
    """Answers that give their reason."""
    if material.scene is None:
        return []
    told = [ask(material.scene, rng) for ask in scene_text.REASONING.values()]
    return [(question.text, question.answer) for question in told if question is not None]


def write_classify(material: Material, rng: np.random.Generator) -> Turns:
    """Which of the classes the image shows; where they are few they are listed in the question."""
    return [(class_question(material, rng), material.label)] if material.label else []


def class_question(material: Material, rng: np.random.Generator) -> str:
    """ "What is this?", with the classes in random order where there are at most 20."""
    if not 2 <= len(material.classes) <= MOST_LISTED:
        return material.question
    names = [material.classes[int(index)] for index in rng.permutation(len(material.classes))]
    return f"{material.question} Choose from: {', '.join(names)}."


def which_caption(material: Material, rng: np.random.Generator) -> Turns:
    """The image's caption among those of other images, in random order; none where there is no other."""
    truth = str(material.captions[int(rng.integers(len(material.captions)))])
    others = [text for text in material.all_captions if text not in material.captions]
    if not others:
        return []
    chosen = [others[int(index)] for index in rng.permutation(len(others))[: CAPTIONS_LISTED - 1]]
    listed = [[truth, *chosen][int(index)] for index in rng.permutation(len(chosen) + 1)]
    return [(f"{WHICH} Choose from: {'; '.join(listed)}", truth)]


# --- LLaVA's short answers, choices and boxes -----------------------------------------------------------------


def write_short_answer(material: Material, rng: np.random.Generator) -> Turns:
    """Questions with LLaVA's words for a short answer, and that: about a scene, or about the class and the things."""
    if material.scene is not None:
        found = scene_text.questions(material.scene, rng, TURNS_PER_CONVERSATION)
        asked = [(question.text, question.answer) for question in found]
    else:
        asked = [(material.question, material.label)] if material.label else []
        asked += _about_things(material, rng)
    return [(f"{question}\n{WORD}", answer) for question, answer in asked]


def _about_things(material: Material, rng: np.random.Generator) -> Turns:
    """Of each where the things give it: is there (yes), is there (no), how many; in random order."""
    present, absent, crowds = _present(material), _absent(material), _crowds(material)
    counted = [name for name in present if name not in crowds and _is(name) == "is" and _a(name) != name]
    asked: Turns = []
    if present:
        asked.append((_is_there(_one(list(present), rng)), "Yes"))
    if absent:
        asked.append((_is_there(_one(absent, rng)), "No"))
    if counted:
        name = _one(counted, rng)
        asked.append((f"How many {plural(name)} are in the image?", str(present[name])))
    return [asked[int(index)] for index in rng.permutation(len(asked))]


def write_multiple_choice(material: Material, rng: np.random.Generator) -> Turns:
    """One question, its options one a line in random order, exactly one of them right, and the letter of that one."""
    choices = _choices_about_scene(material.scene, rng) if material.scene is not None else _choices(material, rng)
    choices = [choice for choice in choices if choice[2]]
    if not choices:
        return []
    question, right, wrong = choices[int(rng.integers(len(choices)))]
    options = [right, *(wrong[int(index)] for index in rng.permutation(len(wrong))[: OPTIONS - 1])]
    order = [int(index) for index in rng.permutation(len(options))]
    listed = [f"{chr(65 + place)}. {options[index]}" for place, index in enumerate(order)]
    return [("\n".join([question, *listed, LETTER]), chr(65 + order.index(0)))]


def _choices_about_scene(scene: Scene, rng: np.random.Generator) -> list[Choice]:
    asked = [question for kind in ALL_ANSWERS if (question := scene_text.QUESTIONS[kind](scene, rng)) is not None]
    return [
        (question.text, question.answer, [other for other in ALL_ANSWERS[question.type] if other != question.answer])
        for question in asked
    ]


def _choices(material: Material, rng: np.random.Generator) -> list[Choice]:
    """A question about the class, one about the captions and one about the things, where they are known."""
    made: list[Choice] = []
    if material.label:
        made.append((material.question, material.label, [name for name in material.classes if name != material.label]))
    captions, things = [line for text in material.captions if (line := _line(text))], list(_present(material))
    if captions:
        made.append((WHICH, _one(captions, rng), _other_captions(material, rng)))
    if things:
        made.append((WHICH_THING, _one(things, rng), _absent(material)))
    return made


def _other_captions(material: Material, rng: np.random.Generator) -> list[str]:
    """A few captions of other images; those of a large dataset are not all looked at for every image."""
    own, count = {_line(text).lower() for text in material.captions}, len(material.all_captions)
    drawn = rng.choice(count, size=min(count, 20), replace=False)
    lines = dict.fromkeys(_line(material.all_captions[int(index)]) for index in drawn)
    return [line for line in lines if line and line.lower() not in own]


def _line(text: str) -> str:
    """A text on one line; COCO's captions have line ends in them."""
    return " ".join(text.split())


def write_grounding(material: Material, rng: np.random.Generator) -> Turns:
    """Regions in LLaVA's convention, box to phrase and phrase to box, each thing one way; at most five.

    Only of things whose name is unique in the image, and whose box is, at two decimals, and is not empty. None where
    the size of the image is not known.
    """
    size = _size(material)
    if size is None:
        return []
    texts = {thing: box_text(padded_box(inside(thing.box, *size), *size)) for thing in material.things if thing.box}
    seen = Counter(texts.values())
    named = [thing for thing in _named(material) if thing in texts and seen[texts[thing]] == 1]
    told = [thing for thing in named if not _is_flat(texts[thing])]
    turns: Turns = []
    for index in rng.permutation(len(told))[:TURNS_PER_CONVERSATION]:
        phrase, box = f"the {_words(told[int(index)].label)}", texts[told[int(index)]]
        turns.append((REGION.format(box=box), phrase) if rng.random() < 0.5 else (FIND.format(phrase=phrase), box))
    return turns


def _is_flat(box: str) -> bool:
    x0, y0, x1, y1 = box.strip("[]").split(", ")
    return x0 >= x1 or y0 >= y1


# --- what is not there ----------------------------------------------------------------------------------------


def write_refusal(material: Material, rng: np.random.Generator) -> Turns:
    """Four questions in random order: two about things that are not there, two about things that are.

    Of each two, one asks whether there is such a thing and one takes it for granted. One of the two absent things is a
    near miss where there is one: it shares a word, such as its color, with something present. Fewer where the material
    does not give them: one absent thing, or no present one whose place is certain.
    """
    present, absent = list(_present(material)), _absent_two(material, rng)
    if not present or not absent:
        return []
    here = _one(present, rng)
    turns = [(_is_there(absent[0]), f"No, there {_is(absent[0])} no {absent[0]} in the image.")]
    turns.append((_is_there(here), f"Yes, there {_is(here)} {_a(here)} in the image."))
    if len(absent) > 1:
        turns.append(_presupposed(absent[1], material, rng))
    turns += _placed(material, rng) if material.scene is None else [_told(material.scene, rng)]
    return [turns[int(index)] for index in rng.permutation(len(turns))]


def _absent_two(material: Material, rng: np.random.Generator) -> list[str]:
    """Up to two absent things in random order, one a near miss and one not, as far as there are such."""
    words = {word for name in _present(material) for word in name.split()}
    names = _absent(material)
    names = [names[int(index)] for index in rng.permutation(len(names))]
    near = [name for name in names if words & set(name.split())]
    far = [name for name in names if name not in near]
    two = [*near[:1], *far[:1]] if near and far else names[:2]
    return two[::-1] if rng.random() < 0.5 else two


def _presupposed(name: str, material: Material, rng: np.random.Generator) -> tuple[str, str]:
    """A question that takes an absent thing for granted, and that it is not there."""
    asked = [(f"Where {_is(name)} the {name}?", name)]
    if material.scene is None:
        asked.append((f"What color {_is(name)} the {name}?", name))
    else:
        asked.append((f"Is the {name} small or large?", name))
        shape = name.split()[-1]
        if all(thing.shape != shape for thing in material.scene.objects):
            asked.append((f"What color is the {shape}?", shape))
    question, noun = asked[int(rng.integers(len(asked)))]
    return question, f"There {_is(noun)} no {noun} in the image."


def _told(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The same questions about a thing that is there."""
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    name = scene_text.name(thing)
    asked = [
        (f"Where is the {name}?", f"The {name} is at the {thing.place}."),
        (f"Is the {name} small or large?", f"The {name} is {thing.size}."),
    ]
    if sum(other.shape == thing.shape for other in scene.objects) == 1:
        asked.append((f"What color is the {thing.shape}?", f"The {thing.shape} is {thing.color}."))
    return asked[int(rng.integers(len(asked)))]


def _placed(material: Material, rng: np.random.Generator) -> Turns:
    """Where a thing is, of those whose name means one thing and whose place is certain."""
    size = _size(material)
    places = [(_words(thing.label), _place(thing.box, *size)) for thing in _named(material) if thing.box and size]
    certain = [(name, place) for name, place in places if place]
    if not certain:
        return []
    name, place = certain[int(rng.integers(len(certain)))]
    return [(f"Where {_is(name)} the {name}?", f"The {name} {_is(name)} at the {place}.")]


def _place(box: Box, width: int, height: int) -> str | None:
    """The third of the image, across and down, in which a box has its centre.

    None where that is a matter of opinion: the box is longer than half the image, or its centre lies within a
    twentieth of the image from a border between thirds.
    """
    thirds = []
    for low, high, side in ((box[1], box[3], height), (box[0], box[2], width)):
        centre = (low + high) / 2 / side
        if high - low > side / 2 or min(abs(centre - 1 / 3), abs(centre - 2 / 3)) < 0.05:
            return None
        thirds.append(min(int(centre * 3), 2))
    return f"{ROWS[thirds[0]]} {COLUMNS[thirds[1]]}"


# --- what is in the image, and what could be --------------------------------------------------------------------


def _words(label: str) -> str:
    return _line(label.replace("_", " ")) or NAMELESS


def _present(material: Material) -> Counter[str]:
    """How many things there are of each name; those without a label have none."""
    if material.scene is not None:
        return Counter(scene_text.name(thing) for thing in material.scene.objects)
    return Counter(name for thing in material.things if (name := _words(thing.label)) != NAMELESS)


def _crowds(material: Material) -> set[str]:
    """Names of things of which one box holds many, as COCO marks them: they cannot be counted."""
    return {_words(thing.label) for thing in material.things if thing.more.get("iscrowd")}


def _named(material: Material) -> list[Thing]:
    """The things whose name means exactly one in the image."""
    present, crowds = _present(material), _crowds(material)
    alone = [name for name in present if present[name] == 1 and name not in crowds]
    clear = {name for name in alone if not any(_alike(name, other) for other in present if other != name)}
    return [thing for thing in material.things if _words(thing.label) in clear]


def _absent(material: Material) -> list[str]:
    """Names of things that are certainly not in the image: pairs of color and shape, or labels of the dataset.

    None where no thing is annotated (perhaps nobody looked), or one has no label. Nor is a label certain that a caption
    mentions, or of which a present one may be a kind ("bear" and "teddy bear").
    """
    present = _present(material)
    if material.scene is not None:
        return [name for color in COLORS for shape in SHAPES if (name := f"{color} {shape}") not in present]
    if not present or present.total() < len(material.things):
        return []
    told = " ".join(material.captions).lower()
    names = [name for label in material.labels if (name := _words(label)) != NAMELESS]
    silent = [name for name in names if name.lower() not in told and plural(name).lower() not in told]
    return [name for name in silent if not any(_alike(name, other) for other in present)]


def _alike(name: str, other: str) -> bool:
    """Whether one may be a kind of the other: equal, or equal to its last words."""
    a, b = f" {name.lower()}", f" {other.lower()}"
    return a.endswith(b) or b.endswith(a)


def _size(material: Material) -> tuple[int, int] | None:
    """Width and height of the image in pixels, where they are known."""
    image = material.image
    return (image.width, image.height) if image and image.width and image.height else None


def _one(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


# --- English --------------------------------------------------------------------------------------------------

_NO_ARTICLE = "broccoli bread cheese food fruit furniture grass hair luggage rice sand smoke snow water".split()


def plural(name: str) -> str:
    """The plural of a label's last word: "wine glass" becomes "wine glasses"."""
    before, _, last = name.rpartition(" ")
    return f"{before} {plural_of(last)}".strip()


def _is(name: str) -> str:
    """ "are" for labels that are plural already ("scissors"), else "is"."""
    last = name.split()[-1]
    ends = last.endswith("s") and not last.endswith(("ss", "us", "is", "lens")) or last == "skis"
    return "are" if ends or last in ("people", "men", "women", "children") else "is"


def _a(name: str) -> str:
    """A label with its article, where it takes one."""
    if _is(name) == "are" or name.split()[-1] in _NO_ARTICLE:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _is_there(name: str) -> str:
    return f"{_is(name).capitalize()} there {_a(name)} in the image?"
