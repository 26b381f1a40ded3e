"""What becomes of the rows of an import: a dataset, a report with every name, and lines for a person.

Knows: `import.json`, its counts on the card, its first names on the screen.
Does not know: where the rows come from, or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.dataset import Dataset
from workbench.data.folder import REPORT
from workbench.resources import write_atomic

SHOWN = 10
"""How many names of a kind a printed summary shows; the report has them all."""
BAD = "bad records"
"""What a report calls records that are no conversation; each is told with its reason, on a line of its own."""


def keep(
    out: Path,
    frame: pl.DataFrame,
    report: Mapping[str, Any],
    *,
    name: str,
    roots: Mapping[str, str],
    made: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    conversations: pl.DataFrame | tuple[()] = (),
    noun: str = "images",
) -> Dataset:
    """Make the rows the dataset `out`, with the report of its import beside them, and print what came of it.

    `made` are sections of the card that tell how it was made; the caller's own `card` goes over them.
    """
    write_report(out, report)
    sections = {**made, **(card or {}), "import": numbers(report)}
    dataset = Dataset.create(out, name=name, roots=roots, card=sections, images=frame, conversations=conversations)
    print(summary(f"{name}: {frame.height} {noun} in {out}", report, out))
    return dataset


def by_reason(frame: pl.DataFrame) -> dict[str, list[str]]:
    """Quarantined paths by the kind of reason, most frequent first."""
    kinds: dict[str, list[str]] = {}
    for path, reason in frame.filter(pl.col("status") == "quarantined").select("path", "reason").iter_rows():
        kinds.setdefault(re.split(r"[:;(]", reason)[0].strip(), []).append(path)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def quarantined(frame: pl.DataFrame) -> dict[str, dict[str, list[str]]]:
    """What a report says of the rows that cannot be used: images, and videos where there are any, `by_reason`."""
    kinds = ["image", "video"] if (frame["media"] == "video").any() else ["image"]
    return {f"quarantined {kind}s": by_reason(frame.filter(media=kind)) for kind in kinds}


def summary(title: str, report: Mapping[str, Any], out: Path) -> str:
    """The report of an import into `out` as lines for a person: numbers, and the first names of every list."""
    lines, cut = [title], False
    for what, value in report.items():
        entries = value.items() if isinstance(value, Mapping) else [("", value)]
        for kind, names in entries:
            label = f"{what}, {kind}" if kind else what
            if isinstance(names, list):
                cut = cut or len(names) > SHOWN
                names = _listed(names, lines=what == BAD)
            if names:
                lines.append(f"  {label}: {names}")
    return "\n".join([*lines, *([f"  all names: {out / REPORT}"] if cut else [])])


def _listed(names: list[Any], *, lines: bool) -> str:
    """How many there are and the first of them, one after the other or each on a line; the empty text for none."""
    shown = [str(name) for name in names[:SHOWN]]
    more = f"and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    if lines:
        return "\n    ".join([str(len(names)), *shown, *([more] if more else [])]) if names else ""
    return f"{len(names)}: {', '.join(shown)} {more}".rstrip() if names else ""


def read_report(dataset: Dataset) -> dict[str, Any]:
    """What came of the import that made the dataset, with every name."""
    return json.loads((dataset.path / REPORT).read_text(encoding="utf-8"))


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    for rest in out.glob(f".{REPORT}.*.tmp"):  # of an import that was killed
        rest.unlink(missing_ok=True)
    write_atomic(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False))


def numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with counts in place of lists, for the card."""
    counted = {what: numbers(value) if isinstance(value, Mapping) else value for what, value in report.items()}
    return {what: len(value) if isinstance(value, list) else value for what, value in counted.items()}
