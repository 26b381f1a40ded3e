"""Several datasets as one source of conversations: how much of each an epoch sees, and what belongs to which.

Knows: repeats and weights, the names that keep ids and images of different datasets apart, and that no image which
one dataset validates on is trained on through another.
Does not know: how a dataset is read (`source.py`), tokens, packs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workbench.conversation import Image
from workbench.data.dataset import Dataset
from workbench.errors import DataError, TrainingError
from workbench.recipe import DataSpec, mix_marks, mix_names
from workbench.recipe_yaml import is_file
from workbench.training.rows import Rows, joined
from workbench.training.source import Share, Source, read_source


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    where: str
    source: Source
    repeat: float = 1.0
    """How often an epoch sees each of its conversations."""
    weight: float | None = None
    """Its share (0-1) of an epoch's conversations; takes the place of `repeat`."""


def read_sources(
    spec: DataSpec, *, seed: int, dataset: Dataset | None = None, say: Callable[[str], None] = print
) -> Source:
    """The conversations of `spec.dataset` (or of `dataset`) mixed with those of `spec.mix`; says what is read.

    In a mixture the rows of `val` have a column `dataset`. Raises `TrainingError` for an unknown task or an empty
    choice, `DataError` for a dataset that cannot be read.
    """
    parts = [_read(spec, seed, dataset)]
    shared: dict[str, Any] = {"val_fraction": spec.val_fraction, "videos": spec.videos}
    for entry in spec.mix:
        one = DataSpec(**entry.model_dump(exclude={"repeat", "weight"}), **shared)
        parts.append(replace(_read(one, seed), repeat=entry.repeat or 1.0, weight=entry.weight))
    if about_videos := sum(part.source.about_videos for part in parts):
        say(f"{about_videos:,} conversations about videos left out (data.videos: false)")
    if len(parts) == 1:
        say(f"data: {parts[0].where}")
        return parts[0].source
    tasks = [spec.tasks, *(entry.tasks for entry in spec.mix)]
    written = f"tasks: [{', '.join(spec.tasks or ())}]"
    hint = f", or write {written} into the entry of data.mix too" if spec.tasks and None in tasks else ""
    return replace(mix(parts, seed=seed, say=say), hint=hint)


def mix(parts: Sequence[Part], *, seed: int, say: Callable[[str], None] = print) -> Source:
    """One source of several. Ids and roots of the first stay as they are; those of the others begin with `NAME:`.

    A conversation about an image that another part validates on is not trained on, and counted.
    """
    names, marks = (of([part.where for part in parts]) for of in (mix_names, mix_marks))
    kept = _without_leaks([part.source for part in parts])
    counts = amounts(parts, [len(rows) for rows in kept])
    shares = tuple(map(_share, names, parts, map(len, kept), counts))
    say(shares_table(shares))
    train, val = [], []
    for number, (name, mark, part) in enumerate(zip(names, marks, parts, strict=True)):
        chosen = take(len(kept[number]), counts[number], np.random.default_rng([seed, number]))
        train.append(kept[number].apart(mark).take(chosen))
        val.append(part.source.val.apart(mark).of_dataset(name))
    resolvers = {name: part.source.resolve for name, part in zip(names[1:], parts[1:], strict=True)}

    def resolve(image: Image) -> Path:
        name, _, root = image.root.partition(":")
        if name in resolvers:
            return resolvers[name](replace(image, root=root))
        return parts[0].source.resolve(image)

    def recorded() -> pl.DataFrame:
        held = [part.source.recorded() for part in parts]
        return pl.concat([one.with_columns(key=mark + pl.col("key")) for mark, one in zip(marks, held, strict=True)])

    left_out = sum(part.source.left_out for part in parts)
    about_videos = sum(part.source.about_videos for part in parts)
    files = [part.source.file for part in parts]
    file = " and ".join(files) if all(files) else ""
    return Source(joined(train), joined(val), resolve, left_out, about_videos, recorded, file, shares)


def amounts(parts: Sequence[Part], sizes: Sequence[int]) -> list[int]:
    """How many conversations of each part an epoch sees: its size times `repeat`, or `weight` of the whole epoch."""
    counts = [0 if part.weight else max(1, round(size * part.repeat)) for part, size in zip(parts, sizes, strict=True)]
    whole = sum(counts) / (1 - sum(part.weight or 0 for part in parts))
    return [max(1, round(whole * part.weight)) if part.weight else n for part, n in zip(parts, counts, strict=True)]


def take(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) numbers below `size`: all as often as they go into `count` whole, and the rest chosen, each once."""
    whole, rest = divmod(count, size)
    return np.concatenate([np.tile(np.arange(size), whole), np.sort(rng.choice(size, rest, replace=False))])


def _read(spec: DataSpec, seed: int, dataset: Dataset | None = None) -> Part:
    if dataset is None and not is_file(spec.dataset):
        dataset = Dataset.open(spec.dataset)
    return Part(str(dataset.path if dataset else spec.dataset), read_source(spec, seed=seed, dataset=dataset))


def _without_leaks(sources: Sequence[Source]) -> list[Rows]:
    """The training conversations of each source that show no image another one validates on.

    Raises `TrainingError` for a source of which none is left.
    """
    seen = [_shown(source.val, source) for source in sources]
    kept = []
    for number, source in enumerate(sources):
        others = pl.concat([*seen[:number], *seen[number + 1 :]])
        rows = source.train
        if others.height:
            both = pl.col("hash").is_in(others["hash"].drop_nulls().implode())
            both |= pl.col("file").is_in(others["file"].drop_nulls().implode())
            leaking = _shown(rows, source).filter(both)["row"].unique()
            rows = rows.where(~pl.Series(np.arange(len(rows))).is_in(leaking.implode()))
        if not len(rows):
            found = f"dataset {number + 1} of the mixture with validation images of the others only"
            raise TrainingError("data.mix", found=found, fix="leave it out, or lower data.val_fraction")
        kept.append(rows)
    return kept


def _shown(rows: Rows, source: Source) -> pl.DataFrame:
    """What tells that two datasets show the same image: `hash` of the content and `file`, by `row` of the frame."""
    images = rows.media
    places = images.select("root", "path").unique(maintain_order=True)
    files = pl.Series([_file(source, root, path) for root, path in places.iter_rows()], dtype=pl.String)
    return images.join(places.with_columns(file=files), on=["root", "path"], how="left").select("row", "hash", "file")


def _file(source: Source, root: str, path: str) -> str | None:
    try:
        return str(source.resolve(Image(path, root=root)))
    except DataError:  # a missing image is told by its own check, with all others
        return None


def _share(name: str, part: Part, kept: int, count: int) -> Share:
    held = part.source
    return Share(name, part.where, count, kept, len(held.val), len(held.train) - kept)


def shares_table(shares: Sequence[Share]) -> str:
    """One line per dataset: how many conversations of it an epoch sees, and what it validates on."""
    width, whole = max(len(one.name) for one in shares), sum(one.conversations for one in shares)
    lines = ["data, mixed:"]
    for one in shares:
        more = f"; {one.leaking:,} not used: their images validate another dataset" if one.leaking else ""
        told = f"{one.conversations:>9,} conversations an epoch ({one.conversations / whole:.0%}), of {one.of:,}"
        lines.append(f"  {one.name:<{width}} {told}; {one.validation:,} to validate{more}; {one.where}")
    return "\n".join(lines)
