"""A FiftyOne dataset of images or videos, anybody's, as a dataset folder; the files stay where they lie.

    tags             train, val or test (validation, dev, ... as well) is the split; the others are kept
    a Classification                    label
    Detections                          objects, with boxes in pixels and their attributes
    a text, or a list of texts          captions
    conversations, as `to_fiftyone` has them    conversations, with verdicts
    video, as `to_fiftyone` has it      the video that the sample's picture is a poster of

Knows: which field is meant where there are several: what the caller names, else one called as ours, else the only one.
Does not know: how a dataset becomes a FiftyOne one (`table.py`), or how files are checked (`data/image_rows.py`).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.conversation import Conversation, from_chat, new_id
from workbench.curation.database import database_errors, open_fiftyone
from workbench.curation.documents import LABELS, RESERVED_TAGS, STATUS_TAGS, own_name, own_value
from workbench.curation.table import verdict_of
from workbench.data.boxes import from_fiftyone
from workbench.data.captions_file import SPLITS
from workbench.data.dataset import Dataset
from workbench.data.image_rows import ROOT, image_rows, nouns, refuse_existing, root_for
from workbench.data.imported import keep, quarantined
from workbench.data.tables import conversations_to_frame
from workbench.errors import DataError, kind_of

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

_NAMES = {
    "label": ("label", "ground_truth"),
    "objects": ("objects", "ground_truth", "detections"),
    "captions": ("captions", "caption", "text"),
}
"""Names of fields that are taken for a column where there are several of its kind; captions only under these."""
_OWN = ("filepath", "tags", "metadata", "workbench_id", "status", "reason", "phash", "conversations")
_FIFTYONE = (
    "_id",
    "_cls",
    "id",
    "tags",
    "attributes",
    "label",
    "bounding_box",
    "mask",
    "mask_path",
    "index",
    "instance",
)
"""What every Detection has, and becomes something else here or nothing."""


def import_fiftyone(
    source: str | SampleCollection,
    out: str | Path,
    *,
    label: str | None = None,
    objects: str | None = None,
    captions: str | None = None,
    name: str | None = None,
    workers: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make the dataset `out` of a FiftyOne dataset (or its name) or view, and print what came of it.

    `label`, `objects` and `captions` name the fields to take. Every image and video is opened once; broken ones are
    quarantined. Fields that no column takes are listed in `out/import.json`. It cannot hold masks, keypoints, what is
    said of single frames or of times, predictions beside the labels, embeddings, brain runs and saved views. Raises
    `DataError` for an unknown name, another medium than images or videos, a file that is there twice, an image with two
    splits, two fields that could both be meant, or where `out` is a dataset already.
    """
    out = Path(out)
    refuse_existing(out)
    if isinstance(source, (list, tuple)):
        raise DataError(", ".join(map(str, source)), found="several names", expected="one FiftyOne dataset")
    source = str(source) if isinstance(source, Path) else source
    if not isinstance(source, str) and not hasattr(source, "_root_dataset"):
        expected = "files, a folder, owner/name on the Hub, or a FiftyOne dataset or view"
        raise DataError("import", found=kind_of(source), expected=expected)
    fo = open_fiftyone()
    with database_errors():
        view = _load(fo, source) if isinstance(source, str) else source
        fields = _fields(fo, view, {"label": label, "objects": objects, "captions": captions})
        files, films = _files(view)
        roots, places = _places(view, files)
        videos = {place for place, film in zip(places, films, strict=True) if film}
        splits = [_split(path, tags) for (_, path), tags in zip(places, view.values("tags"), strict=True)]
        frame = _checked(roots, places, videos, out, workers)  # the long part: what a person can mend is said before it
        frame, odd = _with_columns(view, frame, fields, splits)
        conversations = _conversations(view)
    report: dict[str, Any] = {
        "fields taken": [f"{field} as {column}" for column, field in fields.items()],
        "fields left out": _left_out(view, fields),
        "conversations": conversations.height,
        **quarantined(frame),
        "objects without a box": odd,
    }
    known = view._root_dataset.name
    return keep(
        out,
        frame,
        report,
        name=name or known,
        roots={root: root_for(folder, out) for root, folder in roots.items()},
        made={"made": f"imported from FiftyOne: {known}"},
        card=card,
        conversations=conversations,
        noun=nouns(frame),
    )


def _load(fo: ModuleType, name: str) -> SampleCollection:
    if fo.dataset_exists(name):
        return fo.load_dataset(name)
    known = fo.list_datasets()
    near = difflib.get_close_matches(name, known, 1)
    fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known[:10]) or 'none'}"
    raise DataError(f"FiftyOne dataset {name!r}", found="none of that name", fix=fix)


def _fields(fo: ModuleType, view: SampleCollection, named: Mapping[str, str | None]) -> dict[str, str]:
    """The field that each column is made of, for the columns that have one."""
    where = f"FiftyOne dataset {view._root_dataset.name!r}"
    if not len(view):
        raise DataError(where, found="no sample", expected="images or videos")
    if view.media_type not in ("image", "video"):
        fix = f"take one of its slices: view.select_group_slices({(view.group_slices or ['left'])[0]!r})"
        fix = fix if view.media_type == "group" else ""
        raise DataError(where, found=f"a dataset of media type {view.media_type}", expected="images or videos", fix=fix)
    schema = view.get_field_schema()
    kinds: dict[str, list[str]] = {column: [] for column in _NAMES}
    for field, kind in schema.items():
        document = getattr(kind, "document_type", None)
        if document is fo.Classification:
            kinds["label"].append(field)
        elif document is fo.Detections:
            kinds["objects"].append(field)
        elif isinstance(getattr(kind, "field", kind), fo.StringField) and field not in _own(view):
            kinds["captions"].append(field)
    chosen = {column: _choose(where, column, kinds[column], named[column]) for column in _NAMES}
    return {column: field for column, field in chosen.items() if field}


def _choose(where: str, column: str, fields: Sequence[str], named: str | None) -> str | None:
    if named is not None:
        if named not in fields:
            raise DataError(
                where, found=f"no field {named!r} for {column}", expected=", ".join(fields) or "no such field"
            )
        return named
    known = next((field for field in _NAMES[column] if field in fields), None)
    if known or column == "captions" or not fields:
        return known
    if len(fields) > 1:
        fix = f"name the one to take: {column}={fields[0]!r}"
        raise DataError(where, found=f"several fields for {column}: {', '.join(fields)}", expected="one", fix=fix)
    return fields[0]


def _left_out(view: SampleCollection, fields: Mapping[str, str]) -> list[str]:
    plain = {"id", "created_at", "last_modified_at", *_own(view), *fields.values()}
    left = [field for field in view.get_field_schema() if field not in plain]
    frames = view.get_frame_field_schema() or {} if view.media_type == "video" else {}
    own = {"id", "_sample_id", "frame_number", "created_at", "last_modified_at"}
    return left + [f"frames.{field}" for field in frames if field not in own]


# --- files -----------------------------------------------------------------------------------------------------


def _files(view: SampleCollection) -> tuple[list[Path], list[bool]]:
    """The file of every sample, and whether it is a video; of one of our posters the video that it stands for."""
    files = view.values("filepath")
    if view.media_type == "video":
        return [Path(file) for file in files], [True] * len(files)
    films = view.values("video") if _has_posters(view) else [None] * len(files)
    return [Path(film or file) for film, file in zip(films, files, strict=True)], [film is not None for film in films]


def _own(view: SampleCollection) -> tuple[str, ...]:
    """Fields that are no news here: `video` is one only where it is ours."""
    return (*_OWN, "video") if _has_posters(view) else _OWN


def _has_posters(view: SampleCollection) -> bool:
    """Whether some samples are our pictures of videos."""
    ours = "workbench" in view._root_dataset.info and "video" in view.get_field_schema()
    return ours and view.media_type != "video"


def _places(view: SampleCollection, files: Sequence[Path]) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The roots, and for every file its root and the path below: the roots it went out with, else the folder of all."""
    said = (view._root_dataset.info.get("workbench") or {}).get("roots") or []
    roots = {name: Path(folder) for name, folder in said}
    if not all(any(file.is_relative_to(folder) for folder in roots.values()) for file in files):
        try:
            roots = {ROOT: Path(os.path.commonpath([file.parent for file in files]))}
        except ValueError as problem:
            expected = "files below one folder"
            raise DataError(
                view._root_dataset.name, found=f"files of two disks ({problem})", expected=expected
            ) from None
    inner = sorted(roots.items(), key=lambda item: -len(item[1].parts))
    places = [
        next((name, file.relative_to(folder).as_posix()) for name, folder in inner if file.is_relative_to(folder))
        for file in files
    ]
    seen: set[tuple[str, str]] = set()
    for place, file in zip(places, files, strict=True):
        if place in seen:
            raise DataError(str(file), found="two samples of this file", expected="each file once", fix="delete one")
        seen.add(place)
    return roots, places


def _checked(
    roots: Mapping[str, Path],
    places: Sequence[tuple[str, str]],
    videos: set[tuple[str, str]],
    out: Path,
    workers: int | None,
) -> pl.DataFrame:
    """A row for each file, in the order given."""
    frames = []
    for root, folder in roots.items():
        paths = [path for name, path in places if name == root]
        films = {path for name, path in videos if name == root}
        frame = image_rows(folder, paths, out, videos=films, workers=workers)
        frames.append(frame.with_columns(pl.lit(root).alias("root")))
    order = pl.DataFrame(places, schema={"root": pl.String, "path": pl.String}, orient="row")
    return order.join(pl.concat(frames), on=["root", "path"], how="left", maintain_order="left")


def _with_columns(
    view: SampleCollection, frame: pl.DataFrame, fields: Mapping[str, str], splits: Sequence[str | None]
) -> tuple[pl.DataFrame, list[str]]:
    """The rows with what the fields say, and the images with objects that have no box."""
    sizes = frame.select("path", "width", "height").rows()
    tags = view.values("tags")
    said = view.values(fields["captions"]) if "captions" in fields else [None] * len(sizes)
    labels = view.values(f"{fields['label']}.label") if "label" in fields else [None] * len(sizes)
    found = view.values(f"{fields['objects']}.detections") if "objects" in fields else [None] * len(sizes)
    odd: list[str] = []
    objects = [_objects(size, things, odd) for size, things in zip(sizes, found, strict=True)]
    own = [sorted(tag for tag in some if tag not in RESERVED_TAGS and tag.lower() not in SPLITS) for some in tags]
    frame = frame.with_columns(
        pl.Series("id", _ids(view, frame), dtype=pl.String),
        pl.Series("split", splits, dtype=pl.String),
        pl.Series("label", labels, dtype=pl.String),
        pl.Series("objects", objects, dtype=pl.String),
        pl.Series("captions", [_texts(one) for one in said], dtype=pl.List(pl.String)),
        *([pl.Series("tags", own, dtype=pl.List(pl.String))] if any(own) else []),
    )
    return _with_status(view, frame, tags), odd


def _ids(view: SampleCollection, frame: pl.DataFrame) -> list[str]:
    """The ids that went out; a file that came since gets a new one."""
    has = "workbench_id" in view.get_field_schema()
    known = view.values("workbench_id") if has else [None] * frame.height
    new = [path_id if root == ROOT else new_id("image", root, path) for path_id, root, path in _keys(frame)]
    return [old or made for old, made in zip(known, new, strict=True)]


def _keys(frame: pl.DataFrame) -> Iterable[tuple[str, str, str]]:
    return frame.select("id", "root", "path").iter_rows()


def _with_status(view: SampleCollection, frame: pl.DataFrame, tags: Sequence[Sequence[str]]) -> pl.DataFrame:
    """What a person left out stays out, with the reason; whether a file is broken its check has said."""
    reasons = view.values("reason") if "reason" in view.get_field_schema() else [None] * frame.height
    out = pl.Series("out", [STATUS_TAGS["removed"] in some for some in tags], dtype=pl.Boolean)
    why = pl.Series("why", [reason or "removed by hand" for reason in reasons], dtype=pl.String)
    gone = (pl.col("status") == "ok") & pl.lit(out)
    return frame.with_columns(
        pl.when(gone).then(pl.lit("removed")).otherwise("status").alias("status"),
        pl.when(gone).then(pl.lit(why)).otherwise("reason").alias("reason"),
    )


def _split(path: str, tags: Sequence[str]) -> str | None:
    found = {SPLITS[tag.lower()] for tag in tags if tag.lower() in SPLITS}
    if len(found) > 1:
        raise DataError(path, found=f"the splits {', '.join(sorted(found))} as tags", expected="one at most")
    return next(iter(found), None)


def _texts(said: Any) -> list[str]:
    return [text for text in ([said] if isinstance(said, str) else said or []) if text]


def _objects(size: tuple[str, int | None, int | None], things: Any, odd: list[str]) -> str | None:
    path, width, height = size
    if not things or not width or not height:
        return None
    made = []
    for thing in things:
        if thing.bounding_box is None:
            odd.append(path)
            continue
        box = list(from_fiftyone(thing.bounding_box, width, height))
        held = thing.to_dict()
        kept = {key: value for key, value in held.items() if key not in _FIFTYONE and value is not None}
        more = {own_name(key): own_value(value) for key, value in kept.items()}
        tags = {"tags": list(thing.tags)} if thing.tags else {}
        made.append({"label": thing.label, "box": box, **more, **tags})
    return json.dumps(made, ensure_ascii=False, default=str) if made else None


# --- conversations ----------------------------------------------------------------------------------------------


def _conversations(view: SampleCollection) -> pl.DataFrame:
    """Those that `to_fiftyone` wrote, as rows with their status."""
    import fiftyone as fo

    field = view.get_field_schema().get("conversations")
    if getattr(field, "document_type", None) is not fo.Classifications:
        return conversations_to_frame([])
    labels = [one for some in view.values(LABELS) for one in some or []]
    labels = [label for label in labels if _said(label, "messages")]
    frame = conversations_to_frame(map(_conversation, labels))
    status = pl.Series("status", [_said(label, "status") or "ok" for label in labels], dtype=pl.String)
    reason = pl.Series("reason", [_said(label, "reason") for label in labels], dtype=pl.String)
    return frame.with_columns(status, reason)


def _conversation(label: Any) -> Conversation:
    name = _said(label, "conversation_id") or new_id("fiftyone", label.id)
    verdict = verdict_of(name, label.tags, _said(label, "verdict"))
    try:
        messages = json.loads(_said(label, "messages"))
    except ValueError as problem:
        raise DataError(f"conversation {name}", found=f"messages that are broken JSON ({problem})") from problem
    metadata = {"verdict": verdict} if verdict else {}
    split, task = _said(label, "split"), _said(label, "task")
    return from_chat(messages, id=name, split=split, task=task, metadata=metadata)


def _said(label: Any, name: str) -> Any:
    """An attribute that somebody else's label may not have."""
    return label.get_field(name) if label.has_field(name) else None
