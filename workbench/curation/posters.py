"""Posters of videos: the first frame of each as a picture, which stands for it in FiftyOne.

A FiftyOne dataset is of images or of videos, never of both, and a browser cannot play every codec. So a view of one of
our datasets is of images, where a video is its poster, with the video's own path in a field beside it.

Knows: where posters lie (the state folder, by the video's content; each is made once, and made again where somebody
removed it). Does not know: FiftyOne.
"""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from workbench.curation.measures import image_paths
from workbench.data.batches import map_batches
from workbench.data.dataset import Dataset
from workbench.data.video import Film
from workbench.errors import ImageError
from workbench.resources import state_folder, write_atomic

QUALITY = 90
POOL_FROM = 200
"""Posters from which on starting a pool of processes pays."""


def posters(dataset: Dataset, images: pl.DataFrame) -> dict[str, Path]:
    """The poster of each video among these rows, by id; none of one that was never read or cannot be read now."""
    rows = images.filter(pl.col("media") == "video", pl.col("hash").is_not_null())
    folder = state_folder() / "fiftyone" / "posters"
    places = {name: folder / f"{content[:20]}.jpg" for name, content in rows.select("id", "hash").iter_rows()}
    paths = dict(zip(rows["id"], image_paths(dataset, rows), strict=True))
    missing = [(paths[name], place) for name, place in places.items() if not place.is_file()]
    workers = 1 if len(missing) < POOL_FROM else None
    if missing:  # else nothing is to be said
        for _ in map_batches(_make, missing, "posters of videos", workers=workers, engine="local"):
            pass
    return {name: place for name, place in places.items() if place.is_file()}


def _make(job: tuple[Path, Path]) -> None:
    video, place = job
    try:
        picture = Film(video).first()
    except ImageError:  # the file has gone or changed since it was checked: it is shown as broken
        return
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=QUALITY)
    write_atomic(place, held.getvalue())
