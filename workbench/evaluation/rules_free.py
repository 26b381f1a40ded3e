"""Benchmarks answered with a word, a number or a box: VQAv2, TextVQA, VizWiz, GQA, DocVQA, ChartQA, RefCOCO.

Knows: which comparison each uses and the parts it reports.
Does not know: how two texts or boxes are compared (`vqa_text`, `near`), files, how rows were matched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.data import boxes
from workbench.errors import DataError
from workbench.evaluation import fields, near, vqa_text
from workbench.evaluation.matching import Item
from workbench.evaluation.tally import Marked, Parts, Tally, as_dict, by_kind, part, tally, texts, told


def vqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Soft accuracy after VQA's normalisation; parts by answer type."""
    return free(items, soft_vqa, told("answer_type"))


def soft_vqa(answer: str, item: Item) -> float:
    return vqa_text.soft(answer, texts(item.reference), vqa_text.vqa)


def textvqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Soft accuracy after the normalisation of LLaVA's evaluator for TextVQA and VizWiz."""
    return free(items, soft_textvqa, told("answer_type"))


def soft_textvqa(answer: str, item: Item) -> float:
    return vqa_text.soft(answer, texts(item.reference), vqa_text.textvqa)


def gqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Equal in lower case without a full stop; parts by GQA's structural and semantic types, binary and open."""

    def kind(name: str) -> Callable[[Item], str | None]:
        return lambda item: fields.plain(as_dict(item.about.get("types")).get(name))

    def answers(item: Item) -> str | None:
        structure = kind("structural")(item)
        return None if structure is None else "open" if structure == "query" else "binary"

    return free(items, same_gqa, answers, kind("structural"), kind("semantic"))


def same_gqa(answer: str, item: Item) -> float:
    return float(vqa_text.gqa(answer) in [known.strip().lower() for known in texts(item.reference)])


def docvqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Mean ANLS."""
    return free(items, anls)


def anls(answer: str, item: Item) -> float:
    return near.anls(answer, texts(item.reference))


def chartqa(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """Relaxed accuracy; parts human and augmented where the file tells."""
    return free(items, relaxed, told("type"), told("split"))


def relaxed(answer: str, item: Item) -> float:
    return float(any(near.relaxed(answer, known) for known in texts(item.reference)))


def refcoco(items: Sequence[Item], about: Mapping[str, Any]) -> Tally:
    """The share of boxes that overlap the reference by at least half (IoU >= 0.5), and the mean overlap.

    Boxes are xyxy in 0-1 of the padded square; a reference `bbox` in pixels (x, y, width, height, as COCO writes it)
    is brought there by the row's `width` and `height`.
    """
    overlaps: list[Marked] = [(item, overlap(item.answer or "", item)) for item in items]
    unparsed = sum(item.here and near.box(item.answer or "") is None for item in items)
    marked = [(item, float(found >= 0.5)) for item, found in overlaps]
    parts = {"mean IoU": part(overlaps)} | by_kind(marked, told("split"))
    return tally(marked, parts, unparsed)


def overlap(answer: str, item: Item) -> float:
    said, right = near.box(answer), reference_box(item)
    return near.overlap(said, right) if said else 0.0


def reference_box(item: Item) -> boxes.Box:
    found = near.box(str(item.reference))  # a list is written as a box is
    if found is None:
        raise DataError(f"reference {item.identity}", found=repr(item.reference), expected="a box of four numbers")
    width, height = (
        fields.first(item.about, names) for names in (("width", "image_width"), ("height", "image_height"))
    )
    if max(found) <= 1.5 or not width or not height:
        return found
    return boxes.padded_box(boxes.from_coco(found), int(float(width)), int(float(height)))


def free(items: Sequence[Item], earned: Callable[[str, Item], float], *kinds: Callable[[Item], str | None]) -> Tally:
    """Questions with free answers: only an empty one cannot be read."""
    marked = [(item, earned(item.answer, item) if item.answer is not None else 0.0) for item in items]
    unparsed = sum(item.here and not (item.answer or "").strip() for item in items)
    parts: Parts = {}
    for kind in kinds:
        parts |= by_kind(marked, kind)
    return tally(marked, parts, unparsed)
