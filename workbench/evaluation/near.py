"""Answers that may be a little off: the edit distance of documents, the five percent of charts, the overlap of boxes.

Knows: ANLS (DocVQA), relaxed accuracy (ChartQA), boxes in text and their intersection over union (RefCOCO).
Does not know: files and splits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from workbench.data.boxes import Box

_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"(-?\d*\.?\d+(?:e-?\d+)?)"] * 4) + r"\s*[\])]")


def edits(first: str, second: str) -> int:
    """Levenshtein distance: single characters inserted, removed or replaced.

    >>> edits("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for above, one in enumerate(first, start=1):
        corner, row[0] = row[0], above
        for place, other in enumerate(second, start=1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (one != other))
    return row[-1]


def anls(answer: str, references: Sequence[str]) -> float:
    """1 - distance / longer length to the nearest reference, 0 where that is under 0.5; case and spaces do not count.

    Source: the ST-VQA and DocVQA evaluation, threshold 0.5.

    >>> anls("Februry 2020", ["February 2020"]) > 0.9, anls("May", ["February 2020"])
    (True, 0.0)
    """
    best = 0.0
    said = " ".join(answer.lower().split())
    for reference in references:
        known = " ".join(reference.lower().split())
        longer = max(len(said), len(known))
        best = max(best, 1 - edits(said, known) / longer if longer else 1.0)
    return best if best >= 0.5 else 0.0


def relaxed(answer: str, reference: str, tolerance: float = 0.05) -> bool:
    """Numbers within 5% of the reference (a percent sign divides by 100), other texts equal but for case.

    Source: ChartQA (arXiv 2203.10244, section 5.1) as in pix2struct's `relaxed_correctness`: a reference of 0 is text.

    >>> relaxed("10.4", "10"), relaxed("10.6", "10"), relaxed("12%", "0.12"), relaxed("Yes", "yes")
    (True, False, True, True)
    """
    said, known = _number(answer.strip()), _number(reference.strip())
    if said is not None and known:
        return abs(said - known) / abs(known) <= tolerance
    return answer.strip().lower() == reference.strip().lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def box(text: str) -> Box | None:
    """The first four numbers in brackets.

    >>> box("It is at [0.1, 0.2, 0.5, .9].")
    (0.1, 0.2, 0.5, 0.9)
    """
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return left, top, right, bottom


def overlap(first: Box, second: Box) -> float:
    """Intersection over union, from 0 to 1; 0 for boxes without an area.

    >>> overlap((0, 0, 2, 2), (1, 0, 3, 2)) == 1 / 3
    True
    """
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(across, 0.0) * max(down, 0.0)
    areas = sum(max(right - left, 0) * max(bottom - top, 0) for left, top, right, bottom in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0
