"""From a dataset's conversations to examples: chosen, split, rendered, and refused by name where they are unfit.

Knows: which conversations a recipe means, how a validation part is taken by image, and every reason to refuse to start.
Does not know: packs, batches, the loop. It never cuts a conversation and never leaves one out in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.conversation import Conversation, Image
from workbench.data.dataset import Dataset, resolve_inside
from workbench.data.formats import read_conversations
from workbench.errors import DataError, ImageError, TrainingError, WorkbenchError
from workbench.model.llava import Llava
from workbench.model.renderer import IGNORE_INDEX
from workbench.recipe import DataSpec
from workbench.training.example import Example
from workbench.training.packing import Entry

SHOWN = 10
"""At most so many bad samples are spelled out in an error; the rest are counted."""


@dataclass(frozen=True)
class Source:
    """The conversations a recipe means, before rendering."""

    train: list[Conversation]
    val: list[Conversation]
    resolve: Callable[[Image], Path]
    """Where an image's file lies. Raises `DataError`."""
    left_out: int = 0
    """So many conversations of these tasks are not `ok`, or show an image that is not, in whatever split."""


def read_source(spec: DataSpec, *, seed: int, dataset: Dataset | None = None) -> Source:
    """Conversations by split, of the wanted tasks. Raises `TrainingError` for an unknown task and for an empty choice.

    Without a validation split in the data, `val_fraction` of the conversations is taken by whole images, by the seed.
    """
    left_out = 0
    if dataset is None and Path(spec.dataset).suffix in (".json", ".jsonl"):
        rest, train, val, resolve = _read_file(spec), [], [], _file_root(spec)
    else:
        dataset = dataset or Dataset.open(spec.dataset)
        train, val, test = (dataset.conversations(split) for split in ("train", "val", "test"))
        known = {conversation.id for conversation in (*train, *val, *test)}
        usable = dataset.conversations()
        rest, resolve = [c for c in usable if c.id not in known], _cached(dataset.resolve)
        left_out = _count(spec.tasks, dataset.conversation_rows["task"]) - _count(spec.tasks, (c.task for c in usable))
    where = str(dataset.path if dataset else spec.dataset)
    train = train + rest
    _check_tasks(where, spec.tasks, train)
    train, val = ([c for c in held if spec.tasks is None or c.task in spec.tasks] for held in (train, val))
    if not train:
        fix = "generate conversations first, or choose other tasks or another split"
        found = "no conversation to train on" + (f", {left_out:,} that are not ok" if left_out else "")
        raise TrainingError(where, found=found, expected="at least one", fix=fix)
    rng = np.random.default_rng(seed)
    if not val:
        train, val = hold_out(train, spec.val_fraction, rng)
    if spec.max_conversations is not None and spec.max_conversations < len(train):
        chosen = np.sort(rng.choice(len(train), spec.max_conversations, replace=False))
        train = [train[index] for index in chosen]
    return Source(train, val, resolve, left_out)


def hold_out(
    conversations: Sequence[Conversation], fraction: float, rng: np.random.Generator
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, validation): all conversations about one image go to the same side. At least one image stays on each."""
    groups: dict[object, list[Conversation]] = {}
    for conversation in conversations:
        first = conversation.images[0] if conversation.images else None
        groups.setdefault(((first.hash or first) if first else conversation.id), []).append(conversation)
    wanted = fraction * len(conversations)
    held: set[str] = set()
    order = [list(groups.values())[index] for index in rng.permutation(len(groups))]
    for members in order[:-1] if fraction else []:
        held.update(conversation.id for conversation in members)
        if len(held) >= wanted:
            break
    train = [conversation for conversation in conversations if conversation.id not in held]
    return train, [conversation for conversation in conversations if conversation.id in held]


def render_examples(conversations: Sequence[Conversation], llava: Llava, *, max_tokens: int) -> list[Example]:
    """One example per conversation. Raises `TrainingError` that names those that cannot be trained on, with reasons."""
    examples, refused = [], []
    for conversation in conversations:
        try:
            example = to_example(conversation, llava)
        except WorkbenchError as error:
            refused.append(str(error))
            continue
        if example.tokens > max_tokens:
            refused.append(f"{example.id}: {example.tokens} tokens, more than train.max_tokens = {max_tokens}")
        elif not example.supervised:
            refused.append(f"{example.id}: no token to train on")
        else:
            examples.append(example)
    if refused:
        fix = "correct or reject them in the dataset, or raise train.max_tokens"
        refuse(refused, len(conversations), "conversations", fix)
    return examples


def to_example(conversation: Conversation, llava: Llava) -> Example:
    """One conversation as token ids, with as many tokens for each image as the model makes of it."""
    rendered = llava.renderer.render(conversation)
    return Example(
        id=rendered.id,
        ids=np.array(rendered.ids, np.int32),
        trained=np.array(rendered.labels) != IGNORE_INDEX,
        shared=rendered.prefix,
        images=tuple(image_key(image) for image in rendered.images),
        counts=(llava.image_tokens,) * len(rendered.images),
        task=conversation.task,
    )


def entries(examples: Iterable[Example]) -> list[Entry]:
    """What packing has to know of each."""
    return [
        Entry(number, e.tokens, e.prefix, e.supervised, len(e.images), e.shared_images, e.share_key)
        for number, e in enumerate(examples)
    ]


def image_key(image: Image) -> str:
    return f"{image.root}/{image.path}"


def find_images(source: Source) -> dict[str, Path]:
    """File of every image by key. Raises `TrainingError` naming conversation, file and reason of each missing one."""
    files: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for conversation in (*source.train, *source.val):
        for image in conversation.images:
            key = image_key(image)
            if key in files or key in missing:
                continue
            try:
                files[key] = source.resolve(image)
                if not files[key].is_file():
                    missing[key] = f"{conversation.id}: {files[key]}: no such file"
            except DataError as error:
                missing[key] = f"{conversation.id}: {error}"
    if missing:
        refuse(list(missing.values()), len(files), "images", "put the files back, or correct the roots in card.yaml")
    return files


def refuse_images(errors: Sequence[ImageError], examples: Sequence[Example], files: dict[str, Path]) -> None:
    """Raise `TrainingError` for images that cannot be opened, each with the conversations that need it."""
    if not errors:
        return
    users: dict[str, list[str]] = {}
    for example in examples:
        for key in example.images:
            users.setdefault(str(files[key]), []).append(example.id)
    lines = []
    for error in errors:
        needed = users.get(error.where, [])
        more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
        lines.append(f"{needed[0] if needed else 'unused'}{more}: {error}")
    refuse(lines, len(files), "images", "replace the files, or quarantine the images in the dataset")


def refuse(reasons: Sequence[str], total: int, what: str, fix: str) -> None:
    """Raise one `TrainingError` for all of them: each reason names its sample."""
    lines = [f"\n  {reason}" for reason in reasons[:SHOWN]]
    if len(reasons) > SHOWN:
        lines.append(f"\n  ... and {len(reasons) - SHOWN} more")
    raise TrainingError(
        "training does not start",
        found=f"{len(reasons)} of {total} {what} that cannot be trained on:{''.join(lines)}\n",
        expected="every one to be usable: none is skipped in silence",
        fix=fix,
    )


def _read_file(spec: DataSpec) -> list[Conversation]:
    made, broken = [], []
    for item in read_conversations(spec.dataset):
        if isinstance(item, Conversation):
            made.append(item)
        else:
            broken.append(f"{item.id}: {item.error}")
    if broken:
        refuse(broken, len(made) + len(broken), "conversations", f"correct them in {spec.dataset}")
    return made


def _file_root(spec: DataSpec) -> Callable[[Image], Path]:
    root = Path(spec.images or Path(spec.dataset).parent)
    return lambda image: resolve_inside(root, image.path)


def _cached(resolve: Callable[[Image], Path]) -> Callable[[Image], Path]:
    held: dict[str, Path] = {}

    def look_up(image: Image) -> Path:
        key = image_key(image)
        if key not in held:
            held[key] = resolve(image)
        return held[key]

    return look_up


def _count(wanted: Sequence[str] | None, tasks: Iterable[str | None]) -> int:
    return sum(wanted is None or task in wanted for task in tasks)


def _check_tasks(where: str, tasks: Sequence[str] | None, found: Sequence[Conversation]) -> None:
    known = sorted({conversation.task for conversation in found if conversation.task})
    for task in tasks or ():
        if task not in known:
            near = difflib.get_close_matches(task, known, 1)
            fix = f"did you mean {near[0]}?" if near else ""
            raise TrainingError(where, found=f"no task {task!r}", expected=" or ".join(known) or "tasks", fix=fix)
