"""A wall of conversations with their pictures: searched, filtered, opened, and from there shown in FiftyOne.

Knows: what conversations, evaluation results, datasets and tables of images have in common to be looked at, and that
pictures are opened only when they come into view.
Does not know: how it looks and is searched (`gallery.js`, `gallery.css`), FiftyOne (`curation/app.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import traitlets

from workbench.conversation import Conversation, Image, Media, as_conversation
from workbench.data.dataset import Dataset
from workbench.data.images import thumbnail_uri
from workbench.data.tables import media_of
from workbench.data.video import by_content, seen, still
from workbench.errors import DataError, kind_of
from workbench.evaluation.results import Results
from workbench.widgets.base import View, front
from workbench.widgets.pictures import Opener, opener
from workbench.widgets.static import page

SIDE = 224
"""Pixels of a thumbnail at most."""
IN_HTML = 24
"""Items of the plain page, each with a picture inside it."""


class GalleryView(View):
    """The widget. `items` are {id, task, split, tags, score, turns: [[role, text]]}; pictures come when asked for."""

    _esm, _css = front("gallery")
    ACTIONS = ("pictures", "open")
    title = traitlets.Unicode().tag(sync=True)
    items: traitlets.List[Any] = traitlets.List().tag(sync=True)
    opens = traitlets.Bool().tag(sync=True)
    """Whether FiftyOne can show the images: they are a dataset's."""
    app = traitlets.Unicode().tag(sync=True)
    """Where FiftyOne's App shows the image that was asked for, or what is being done about it."""

    def __init__(
        self,
        title: str,
        items: Sequence[dict[str, Any]],
        images: Sequence[Media | None],
        open_image: Opener,
        dataset: Dataset | None = None,
    ) -> None:
        """images: the first of each item."""
        self._images, self._open_image, self._dataset = images, open_image, dataset
        super().__init__(title=title, items=list(items), opens=dataset is not None)

    def __repr__(self) -> str:
        return f"gallery of {self.title}: {len(self.items):,} items"

    def html(self) -> str:
        shown = [{**item, "picture": self._picture(number)} for number, item in enumerate(self.items[:IN_HTML])]
        return page("gallery", title=self.title, items=shown, count=len(self.items))

    def act(self, action: str, given: dict[str, Any]) -> None:
        if action == "pictures":
            numbers = [number for number in given.get("numbers", ()) if 0 <= number < len(self.items)]
            self.send({"pictures": {str(number): self._picture(number) for number in numbers}})
        elif self._dataset is not None:
            threading.Thread(target=self._open, args=(int(given["number"]),), name="open", daemon=True).start()

    def _picture(self, number: int) -> str | None:
        """Of a video its first frame; None where there is no picture, or none that can be opened."""
        image = self._images[number]
        try:
            return None if image is None else thumbnail_uri(still(self._open_image(image)), SIDE)
        except DataError:
            return None

    def _open(self, number: int) -> None:
        from workbench.curation.app import open_images

        image = self._images[number]
        if image is None or self._dataset is None:
            return
        self.app = "opening FiftyOne ..."
        try:
            self.app = open_images(self._dataset, [image]).url
        except Exception as error:  # whatever FiftyOne raises too: nobody else hears of it in this thread
            self.app, self.problem = "", str(error)


def gallery(
    what: Dataset | Results | Iterable[Conversation] | pl.DataFrame | str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
) -> GalleryView:
    """Look at many conversations with their pictures: search, filter by task, split, tag and score, open one.

    what: a dataset or its folder (its images, where it has no conversation yet), the results of an evaluation or their
    folder, conversations, or a table: `results.failures`, or images by id as `wb.search` and `funnel.removed` give.
    dataset: where the pictures of conversations and tables lie; without one the paths of conversations are files.
    Raises `DataError` for anything else.

    >>> wb.gallery("data")
    gallery of scenes: 164 items
    """
    if isinstance(what, (str, Path)):
        what = Results.open(what) if (Path(what) / "evaluation.json").is_file() else Dataset.open(what)
    if isinstance(what, Results):
        return _of_results(what)
    if isinstance(what, Dataset):
        said = _made(what.name, what.iter_conversations(), what)
        return said if said.items else _of_images(what.name, what.images.filter(pl.col("status") == "ok"), what)
    if not isinstance(what, Iterable):
        raise DataError("gallery", found=kind_of(what), expected="a dataset, results, their folder, or conversations")
    held = None if dataset is None else Dataset.open(dataset)
    if isinstance(what, pl.DataFrame):
        return _of_images("images", what, held)
    return _made("conversations", map(as_conversation, what), held)


def _made(title: str, conversations: Iterable[Conversation], dataset: Dataset | None) -> GalleryView:
    kept = list(conversations)
    items = [
        {
            "id": one.id, "task": one.task or "", "split": one.split or "", "score": one.metadata.get("score"),
            "tags": [str(tag) for tag in one.metadata.get("tags", ())],
            "turns": [[turn.role, turn.text] for turn in one.messages],
        }
        for one in kept
    ]  # fmt: skip
    return GalleryView(title, items, [next(iter(one.media), None) for one in kept], opener(dataset), dataset)


def _of_images(title: str, rows: pl.DataFrame, dataset: Dataset | None) -> GalleryView:
    """Rows of answers, or with the column id; `similarity` is then the score, `filter` a tag, `reason` what is said."""
    if {"image", "root", "answer", "earned"} <= set(rows.columns):
        return _of_rows(rows, dataset)
    if dataset is None or "id" not in rows.columns:
        found = f"a table with the columns {', '.join(rows.columns)}"
        raise DataError("gallery", found=found, expected="a column id, and dataset= whose images these are")
    known = dataset.images.select(
        "id", "root", "path", "label", "split", "captions", "width", "height", "hash", "media"
    )
    told = [column for column in ("similarity", "filter", "reason") if column in rows.columns]
    found_rows = rows.select("id", *told).join(known, on="id", maintain_order="left").to_dicts()
    items = [
        {
            "id": row["id"], "task": "", "split": row["split"] or "", "score": row.get("similarity"),
            "tags": [tag for tag in (row.get("filter"), row["label"]) if tag],
            "turns": [["user", row["path"]], ["assistant", row.get("reason") or next(iter(row["captions"] or ()), "")]],
        }
        for row in found_rows
    ]  # fmt: skip
    images = [media_of(row) for row in found_rows]
    return GalleryView(title, items, images, opener(dataset), dataset)


def _of_results(results: Results) -> GalleryView:
    rows = list(results.rows.iter_rows(named=True))
    roots = {name: Path(root) for name, root in results.settings.get("roots", {}).items()}
    images = [Image(row["image"], row["root"] or "images") if row["image"] else None for row in rows]
    open_image: Opener = lambda image: results.picture({"id": "", "image": image.path, "root": image.root})  # noqa: E731
    items = list(_judged(rows))
    return GalleryView(f"{results.model} ({results.scorer})", items, images, open_image, _dataset_of(roots))


def _of_rows(rows: pl.DataFrame, dataset: Dataset | None) -> GalleryView:
    """Rows of results, which say in a column `dataset` where their pictures lie."""
    if dataset is None and "dataset" in rows.columns and rows["dataset"].drop_nulls().len():
        dataset = Dataset.open(rows["dataset"].drop_nulls()[0])
    told = rows.to_dicts()
    images = [Image(row["image"], row["root"] or "images") if row["image"] else None for row in told]
    open_image = opener(None) if dataset is None else _opener_of_rows(dataset)
    return GalleryView("answers", list(_judged(told)), images, open_image, dataset)


def _opener_of_rows(dataset: Dataset) -> Opener:
    """Rows do not say whether it is a video that they are about."""
    resolve = dataset.resolver()
    return lambda image: seen(by_content(resolve(image)))


def _judged(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        tags = ["right" if row["right"] else "error" if row["error"] else "wrong"]
        turns = [["user", row["question"] or row["prompt"] or ""], ["assistant", row["answer"] or row["error"] or ""]]
        if not row["right"] and row["reference"]:
            turns.append(["expected", row["reference"]])
        told = {"id": row["id"], "task": row["type"] or "", "split": "", "score": row["earned"]}
        yield {**told, "tags": tags, "turns": turns}


def _dataset_of(roots: dict[str, Path]) -> Dataset | None:
    """The dataset whose folder these roots lie in, where there is one."""
    for root in roots.values():
        if (root.parent / "card.yaml").is_file():
            return Dataset.open(root.parent)
    return None
