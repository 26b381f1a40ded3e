"""Which conversations a recipe means: read, chosen by task, split, and their images found.

Knows: how a validation part is taken by image, how a part of the data is chosen, and every reason to refuse to start
that can be seen without a model.
Does not know: token ids, packs, the loop. It never leaves a conversation out in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workbench.conversation import Conversation, Image
from workbench.data import tables
from workbench.data.conversation_file import named
from workbench.data.dataset import Dataset
from workbench.data.folder import inside
from workbench.data.formats import read_conversations
from workbench.errors import DataError, ImageError, TrainingError, WorkbenchError
from workbench.recipe import DataSpec
from workbench.recipe_yaml import is_file
from workbench.training.rows import KEY, NEEDED, Messages, Rows, pack

SIZE_COLUMNS: dict[str, Any] = {"key": pl.String, "width": pl.Int64, "height": pl.Int64}
"""An image's key, and its size in pixels."""
SHOWN, NAMED = 10, 3
"""At most so many reasons are spelled out in an error, each with so many of its samples; the rest are counted."""

Bad = tuple[str, str]
"""A sample that cannot be trained on, and why: equal words for equal reasons."""

_PICTURES = ~pl.col("media").list.eval(pl.element().struct.field("type") == "video").list.any().fill_null(False)
"""Conversations without a video."""


@dataclass(frozen=True)
class Share:
    """What a run sees of one dataset of a mixture."""

    name: str
    where: str
    conversations: int
    """So many an epoch, repeats counted."""
    of: int
    """Different conversations that they are taken from."""
    validation: int
    """Conversations to validate on."""
    leaking: int
    """So many are not used since their images validate another dataset."""


@dataclass(frozen=True)
class Source:
    """The conversations a recipe means, before rendering."""

    train: Rows
    val: Rows
    resolve: Callable[[Any], Path]
    """Where the file of an image or video lies. Raises `DataError`, also where there is no such file."""
    left_out: int = 0
    """So many conversations of these tasks are not `ok`, or show an image that is not, in whatever split."""
    about_videos: int = 0
    """So many conversations are left out since `data.videos` is false."""
    recorded: Callable[[], pl.DataFrame] = lambda: pl.DataFrame(schema=SIZE_COLUMNS)
    """What is recorded of the sizes of images, beside what conversations carry: columns `SIZE_COLUMNS`."""
    file: str = ""
    """The JSON or JSONL file that it is; empty for a dataset. Its conversations have the ids that they have there."""
    mixed: tuple[Share, ...] = ()
    """The datasets of a mixture; empty for one alone."""
    hint: str = ""
    """What else may be wrong with the recipe where a conversation cannot be trained on."""

    @property
    def mend(self) -> str:
        """What to do about conversations that cannot be trained on."""
        return (f"correct them in {self.file}" if self.file else "correct or reject them in the dataset") + self.hint


def read_source(spec: DataSpec, *, seed: int, dataset: Dataset | None = None) -> Source:
    """Conversations by split, of the wanted tasks. Raises `TrainingError` for an unknown task and for an empty choice.

    Without a validation split in the data, `val_fraction` of the conversations is taken by whole images, by the seed.
    """
    left_out, recorded, file = 0, Source.recorded, ""
    if dataset is None and is_file(spec.dataset):
        file = spec.dataset
        rows, resolve, where = Rows(_read_file(spec).select(*NEEDED)), _file_root(spec), spec.dataset
    else:
        dataset = dataset or Dataset.open(spec.dataset)
        rows, left_out = _read_dataset(dataset, spec.tasks)
        resolve, where, recorded = dataset.resolver(there=True), str(dataset.path), partial(_recorded, dataset)
    train = rows.where(pl.col("part").is_null() | (pl.col("part") == "train"))
    val = rows.where(pl.col("part") == "val")
    _check_tasks(where, spec.tasks, train)
    if spec.tasks is not None:
        train, val = (part.where(pl.col("task").is_in(spec.tasks)) for part in (train, val))
    both = len(train) + len(val)
    if not spec.videos:
        train, val = train.where(_PICTURES), val.where(_PICTURES)
    about_videos = both - len(train) - len(val)
    if not len(train):
        fix = "generate conversations first, or choose other tasks or another split"
        found = "no conversation to train on" + (f", {left_out:,} that are not ok" if left_out else "")
        found += f", {about_videos:,} about videos (data.videos: false)" if about_videos else ""
        raise TrainingError(where, found=found, expected="at least one", fix=fix)
    rng = np.random.default_rng(seed)
    if not len(val):
        train, val = hold_out(train, spec.val_fraction, rng)
    if spec.max_conversations is not None and spec.max_conversations < len(train):
        train = train.take(np.sort(rng.choice(len(train), spec.max_conversations, replace=False)))
    return Source(train, val, resolve, left_out, about_videos, recorded, file)


def hold_out(rows: Rows, fraction: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """(train, validation): conversations that show one image, or images that others show together, stay together.

    At least one image stays on each side. Where images are joined so, what would make it more than twice what is wanted
    (or more than a usual image has) stays with what trains; where all are joined, as by one picture that every
    conversation shows, the first image decides.
    """
    names, joined = _groups(rows)
    groups = names.value_counts().join(names.unique(maintain_order=True).to_frame(), on="about", maintain_order="right")
    wanted, count = fraction * len(rows), 0
    held: list[str] = []
    most = max(2 * wanted, float(np.median(groups["count"]))) if joined else len(rows)
    for index in rng.permutation(groups.height) if fraction else []:
        name, size = groups.row(int(index))
        if len(held) == groups.height - 1:
            break
        if count + size > most:
            continue
        held.append(name)
        count += size
        if count >= wanted:
            break
    inside = names.is_in(held)
    return rows.where(~inside), rows.where(inside)


def _groups(rows: Rows) -> tuple[pl.Series, bool]:
    """(what each conversation is about, whether all its images count: it has the group then of all that show one of
    them)."""
    names = rows.frame.select(pl.coalesce("about", pl.format("conversation {}", "id")))["about"]
    if rows.frame.select((pl.col("media").list.len() > 1).any()).item() is not True:
        return names, False
    shown = rows.media.select("row", pl.coalesce("hash", "key").rank("dense") - 1)
    row, image = shown["row"].to_numpy(), shown["hash"].to_numpy() + len(rows)
    links = coo_array((np.ones(len(row), bool), (row, image)), shape=(image.max() + 1,) * 2)
    found = pl.Series("about", connected_components(links, directed=False)[1][: len(rows)]).cast(pl.String)
    return (found, True) if found.n_unique() > 1 else (names, False)


def find_images(source: Source) -> dict[str, Path]:
    """File of every image by key. Raises `TrainingError` naming conversation, file and reason of each missing one."""
    files: dict[str, Path] = {}
    missing: dict[str, Bad] = {}
    for rows in (source.train, source.val):
        for id, key in rows.keys.iter_rows():
            if key in files or key in missing:
                continue
            root, _, path = key.partition("/")
            try:
                files[key] = source.resolve(Image(path, root=root))
            except DataError as error:
                missing[key] = f"{id} ({error.where})", reason_of(error)
    if missing:
        roots = f"set data.images to the folder that the paths in {source.file} start from"
        fix = f"put the files back, or {roots if source.file else 'correct the roots in card.yaml'}"
        refuse(list(missing.values()), len(files) + len(missing), "images", fix)
    return files


def refuse_images(errors: Sequence[ImageError], source: Source, files: dict[str, Path]) -> None:
    """Raise `TrainingError` for images that cannot be opened, each with the conversations that need it."""
    if not errors:
        return
    lines, users = [], users_of(source, files)
    for error in errors:
        needed = users(error.where)
        more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
        lines.append((f"{needed[0] if needed else 'unused'}{more} ({error.where})", reason_of(error)))
    otherwise = f"take their records out of {source.file}" if source.file else "quarantine the images in the dataset"
    refuse(lines, len(files), "images", f"replace the files, or {otherwise}")


def users_of(source: Source, files: Mapping[str, Path]) -> Callable[[str], list[str]]:
    """path -> ids of the conversations that show the image there. `files`: key -> path."""

    def look_up(path: str) -> list[str]:
        shown = pl.any_horizontal(pl.lit(False), *(pl.col("keys").list.contains(key) for key in keys_of(path)))
        return [id for rows in (source.train, source.val) for id in rows.where(shown).frame["id"]]

    def keys_of(path: str) -> list[str]:
        return [key for key, file in files.items() if str(file) == path]

    return look_up


def reason_of(error: WorkbenchError) -> str:
    """What an error says, without the sample it is about."""
    return str(error).removeprefix(f"{error.where}: ")


def refuse(bad: Sequence[Bad], total: int, what: str, fix: str) -> None:
    """Raise one `TrainingError` for all of them: a line for each reason, the commonest first, with some samples."""
    samples: dict[str, list[str]] = {}
    for sample, reason in bad:
        samples.setdefault(reason, []).append(sample)
    sorts = sorted(samples.items(), key=lambda item: -len(item[1]))
    lines = [f"\n  {_told(reason, held)}" for reason, held in sorts[:SHOWN]]
    if more := sum(len(held) for _, held in sorts[SHOWN:]):
        lines.append(f"\n  ... and {more:,} more, for {len(sorts) - SHOWN:,} other reasons")
    raise TrainingError(
        "training does not start",
        found=f"{len(bad):,} of {total:,} {what} that cannot be trained on:{''.join(lines)}\n",
        expected="every one to be usable: none is skipped in silence",
        fix=fix,
    )


def _told(reason: str, samples: Sequence[str]) -> str:
    """`c1: no token to train on`; or `no token to train on: 812: c1; c2; c3; ...`."""
    if len(samples) == 1:
        return f"{samples[0]}: {reason}"
    more = "; ..." if len(samples) > NAMED else ""
    return f"{reason}: {len(samples):,}: {'; '.join(samples[:NAMED])}{more}"


def _read_dataset(dataset: Dataset, tasks: Sequence[str] | None) -> tuple[Rows, int]:
    """The usable rows, a shard in memory at a time beside what is kept of them, and how many of the tasks are not."""
    held, left_out, messages = [], 0, Messages()
    for rows in dataset.conversation_parts():
        left_out += _count(rows.filter(~pl.col("usable")), tasks)
        held.append(pack(rows.filter("usable").select(*NEEDED, "part"), messages))
    return Rows(pl.concat(held), messages), left_out


def _recorded(dataset: Dataset) -> pl.DataFrame:
    pictures = dataset.images.filter(pl.col("media") == "image")  # a video counts by its frames
    return pictures.select(KEY.alias("key"), "width", "height").drop_nulls()


def _read_file(spec: DataSpec) -> pl.DataFrame:
    broken: list[Bad] = []

    def whole() -> Iterator[Conversation]:
        for name, item in named(read_conversations(spec.dataset)):
            if isinstance(item, Conversation):
                yield replace(item, id=name)
            else:
                broken.append((name, item.error))

    frame = tables.conversations_to_frame(whole())
    if broken:
        refuse(broken, frame.height + len(broken), "conversations", f"correct them in {spec.dataset}")
    return frame


def _file_root(spec: DataSpec) -> Callable[[Image], Path]:
    find = inside(Path(spec.images or Path(spec.dataset).parent), there=True)
    return lambda image: find(image.path)


def _count(frame: pl.DataFrame, tasks: Sequence[str] | None) -> int:
    return frame.height if tasks is None else frame.filter(pl.col("task").is_in(tasks)).height


def _check_tasks(where: str, tasks: Sequence[str] | None, rows: Rows) -> None:
    known = sorted(rows.frame["task"].drop_nulls().unique().to_list())
    for task in tasks or ():
        if task not in known:
            near = difflib.get_close_matches(task, known, 1)
            fix = (
                f"did you mean {near[0]}?"
                if near
                else "data.tasks=null trains on all conversations, whatever their task"
            )
            expected = " or ".join(known) or "conversations that say their task; none does"
            raise TrainingError(where, found=f"no task {task!r}", expected=expected, fix=fix)
