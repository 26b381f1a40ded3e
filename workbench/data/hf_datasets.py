"""Hugging Face `datasets` with the columns images and messages, in and out.

    images     list of pictures (bytes and a path), in the order in which messages ask for them
    messages   role and content; content is a text, or a list of parts of type text or image

Knows: these columns, what ours adds to them (id, split, task, source, image_paths), and where embedded pictures go.
Does not know: where rows come from (`hf_rows.py`), or how images are checked (`image_rows.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image as PILImage

from workbench.conversation import IMAGE_MARK, SPLITS, Conversation, Image, Message
from workbench.data.conversation_file import import_conversations, own_or_foreign, splits_of, unique_ids
from workbench.data.dataset import Dataset
from workbench.data.folder import resolve_inside
from workbench.data.hf_rows import NAME, download, hf_rows
from workbench.data.image_rows import refuse_existing
from workbench.data.images import EXTENSIONS
from workbench.data.json_records import BadRecord, bad_name
from workbench.data.outgoing import new_folder
from workbench.data.sharegpt import from_turns
from workbench.errors import ConversationError, DataError
from workbench.resources import disk_errors, expanded

MEDIA = "media"
_FILES = {"train": "train", "val": "validation", "test": "test", None: "train"}
_AT_ONCE = 50


def import_hf(source: str | Path, out: str | Path, **options: Any) -> Dataset:
    """Make the dataset `out` of a saved folder, Parquet files, or `owner/name` on the Hub; options as `import_llava`.

    Embedded pictures are written to `out/media`: under `image_paths` where the rows have it, else by their content.
    Rows that are no conversation are listed in `out/import.json`. Raises `DataError` as `hf_rows` and `download` do.
    """
    out, path = Path(out), expanded(source)
    card: dict[str, Any] = {}
    refuse_existing(out)
    if not path.exists() and NAME.fullmatch(str(source)):
        path, card = download(str(source))
    records = unique_ids(_conversations(path, out / MEDIA))
    first = next(records, None)  # a source that cannot be read leaves no folder behind
    if first is None:
        raise DataError(str(source), found="no row", expected="columns images and messages")
    (out / MEDIA).mkdir(parents=True, exist_ok=True)
    options["card"] = {**card, **(options.get("card") or {})}
    options["name"] = options.get("name") or (Path(source).resolve().stem if path.is_file() else Path(source).name)
    return import_conversations(chain([first], records), source, out / MEDIA, out, "Hugging Face", **options)


def export_hf(dataset: Dataset, out: str | Path, *, split: str | None = None) -> int:
    """Write the conversations that are ok as Parquet files, one per split, with their pictures; return how many.

    `datasets.load_dataset(out)` reads them. They hold turns, images at their place, ids, splits, tasks and sources; not
    captions, classes, objects, or images without a conversation. Those without a split are in train.parquet, and their
    column split is empty. Conversations about videos are left out, and their number is printed. Raises `DataError` for
    a missing image, or where `out` is not empty.
    """
    count, left, split_of = 0, 0, splits_of(dataset)
    with new_folder(Path(out)) as building:
        writers: dict[str, Any] = {}
        waiting: dict[str, list[dict[str, Any]]] = {}
        try:
            for one in dataset.iter_conversations(split):
                if len(one.media) > len(one.images):
                    left += 1
                    continue
                made = replace(one, split=split_of(one))
                name, count = _FILES[made.split], count + 1
                waiting.setdefault(name, []).append(_row(dataset, made))
                if len(waiting[name]) == _AT_ONCE:
                    _write(building, writers, name, waiting.pop(name))
            for name, rows in waiting.items():
                _write(building, writers, name, rows)
        finally:
            for writer in writers.values():
                writer.close()
        if left:
            print(f"left out: {left:,} conversations about videos, which this format cannot hold")
        if not count:
            fix = "`workbench generate` writes some"
            raise DataError(str(dataset.path), found="no conversation that is ok", expected="some to export", fix=fix)
    return count


# --- in ---------------------------------------------------------------------------------------------------------


def _conversations(path: Path, media: Path) -> Iterator[Conversation | BadRecord]:
    for place, split, row in hf_rows(path):
        try:
            yield _conversation(row, split, media)
        except (ConversationError, DataError) as problem:
            yield BadRecord(bad_name(row, place), str(problem))


def _conversation(row: Mapping[str, Any], split: str | None, media: Path) -> Conversation:
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        found = f"messages {str(turns)[:60]}" if "messages" in row else f"columns {', '.join(row)}"
        raise DataError("row", found=found, expected="images, and messages with role and content")
    pictures = row.get("images") or ([row["image"]] if row.get("image") else [])
    named = row.get("image_paths") or [None] * len(pictures)
    if len(named) != len(pictures):
        raise DataError("row", found=f"{len(pictures)} images and {len(named)} image_paths", expected="as many")
    paths = [_stored(picture, name, media) for picture, name in zip(pictures, named, strict=True)]
    id, source = own_or_foreign(row, "hf", paths, turns)
    made = from_turns(_with_marks(turns, len(paths)), paths, id=id, shape="messages")
    said, task = row.get("split", split), row.get("task")
    task = task if isinstance(task, str) else None
    return replace(made, split=said if said in SPLITS else None, task=task, source={**_source(row), **source})


def _source(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `export_hf` wrote; a column of that name by others is a text, or anything."""
    said = row.get("source")
    try:
        held = json.loads(said) if isinstance(said, str) else None
    except ValueError:
        held = None
    return held if isinstance(held, dict) else {} if said is None else {"source": str(said)}


def _with_marks(turns: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Parts without their empty values; pictures that no turn asks for stand before the first question, as in TRL."""
    made = [{**turn, "content": _parts(turn.get("content"))} for turn in turns]
    asked = sum(_asks(turn["content"]) for turn in made)
    first = next((turn for turn in made if turn.get("role") == "user"), None)
    if count and not asked and first is not None:
        text = [{"type": "text", "text": first["content"]}] if isinstance(first["content"], str) else first["content"]
        first["content"] = [{"type": "image"}] * count + list(text or [])
    return made


def _parts(content: Any) -> Any:
    """Arrow gives every part all keys, with null where one has none."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    return [{key: value for key, value in part.items() if value is not None} for part in content]


def _asks(content: Any) -> int:
    if isinstance(content, str):
        return content.count(IMAGE_MARK)
    return sum(isinstance(part, dict) and part.get("type") == "image" for part in content or [])


def _stored(picture: Any, name: str | None, media: Path) -> str:
    """The path below `media` of an embedded picture, written there."""
    data = picture.get("bytes") if isinstance(picture, dict) else None
    if not data:
        found = f"an image without its bytes ({str(picture)[:60]})"
        raise DataError("row", found=found, expected="embedded pictures", fix="save it again with save_to_disk")
    digest = hashlib.sha256(data).hexdigest()
    path = name or f"{digest[:20]}{_suffix(data, picture.get('path'))}"
    target = resolve_inside(media, path)
    if target.exists() and target.read_bytes() != data:
        path = str(PurePosixPath(path).with_name(f"{digest[:8]}-{PurePosixPath(path).name}"))
        target = resolve_inside(media, path)
    if not target.exists():
        _save(target, data)
    return path


def _save(target: Path, data: bytes) -> None:
    """Whole or not at all; the temporary name is always the same one, so that a killed import leaves nothing over."""
    unfinished = target.with_name(f".{target.name}.tmp")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        os.replace(unfinished, target)


def _suffix(data: bytes, path: str | None) -> str:
    """By the content; a file that is no picture keeps what it was called, and is quarantined when it is checked."""
    try:
        with PILImage.open(io.BytesIO(data)) as opened:
            return EXTENSIONS[str(opened.format)][0]
    except Exception:  # broken headers raise anything, and formats that we do not read are no key
        return (PurePosixPath(path).suffix.lower() if path else "") or ".img"


# --- out --------------------------------------------------------------------------------------------------------


def _features() -> Any:
    import datasets

    text = datasets.Value("string")
    return datasets.Features(
        {
            "images": [datasets.Image()],
            "messages": [{"role": text, "content": [{"type": text, "text": text}]}],
            **{key: text for key in ("id", "split", "task", "source")},
            "image_paths": [text],
        }
    )


def _row(dataset: Dataset, conversation: Conversation) -> dict[str, Any]:
    return {
        "images": [_embedded(dataset, image) for image in conversation.images],
        "messages": [_turn(message) for message in conversation.messages],
        "id": conversation.id,
        "split": conversation.split,
        "task": conversation.task,
        "source": json.dumps(dict(conversation.source), ensure_ascii=False),
        "image_paths": [image.path for image in conversation.images],
    }


def _turn(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def _embedded(dataset: Dataset, image: Image) -> dict[str, Any]:
    file = dataset.resolve(image)
    try:
        return {"bytes": file.read_bytes(), "path": file.name}
    except OSError as problem:
        raise DataError(str(file), found=str(problem.strerror), fix="restore it, or leave this image out") from None


def _write(folder: Path, writers: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _features().arrow_schema
    if name not in writers:
        writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", schema)
    writers[name].write_table(pa.Table.from_pylist(rows, schema=schema))
