"""What the vision tower makes of each image: held in memory where all fits, else read from the disk, else computed.

Knows: opening images ahead in threads, a budget of memory, and that an image's features depend on the image alone.
Does not know: datasets, conversations, packs (an image is a key), what becomes of an image's tiles, or how features lie
on the disk.

Squares (an image is one, or several for LLaVA-NeXT; a video's frames are) go through the tower in groups of one fixed
size, filled up with a repetition where there are fewer: whether features come from memory, from the disk of another run
or from the tower, they are the same bits, and so is training.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image as Picture

from workbench.data.images import load_image, read_file
from workbench.data.video import Film
from workbench.errors import ImageError, TrainingError
from workbench.model.film import film_size, frames_of
from workbench.model.images import ImageMode
from workbench.model.llava import Llava
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import PADDED, Size, Tiling
from workbench.progress import Progress
from workbench.recipe import TrainSpec
from workbench.training.feature_cache import FeatureCache
from workbench.training.feature_key import feature_key
from workbench.training.feature_rows import state_of
from workbench.training.sizes import Sizes, file_key

BUDGET = 1 << 30
"""Bytes of memory for features (or, while the tower trains, for pixels)."""
CHUNK = 32
"""Images that are put into memory at once."""
GROUP = 8
"""Tiles that go through the tower at once on an accelerator; on a CPU it is one, which loses nothing there."""
DECODERS = max(4, min(16, (os.cpu_count() or 4) - 1))
"""Threads that open images: decoding and resizing release the interpreter's lock."""
PENDING = 64
"""Images at most that are opened and not yet asked for."""
T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """An image or a video that was opened: its features where they are on the disk, else its pixels."""

    features: torch.Tensor | None = None
    """(tiles, N, D)."""
    pixels: torch.Tensor | None = None
    """(squares, 3, H, W)."""
    names: tuple[bytes, ...] = ()
    """What to keep the features of each tile by."""
    size: Size | None = None
    """By which it counts, where that matters."""


class ImageFiles:
    """Files of images and videos by key, opened as a model wants them. Raises `ImageError` for one that cannot be used.

    `sizes`: of all images, where `tiling` makes more tiles of a larger one.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        mode: ImageMode | AnyResMode,
        *,
        tiling: Tiling | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.files, self.mode, self.tiling, self.sizes = files, mode, tiling, sizes

    def open(self, key: str, cache: FeatureCache | None = None) -> Opened:
        """Features from the cache, or pixels."""
        path = self.files[file_key(key)]
        if cache is None:
            return Opened(pixels=self._squares(key, path, str(path)), size=self._size(key))
        try:
            state = state_of(path)
        except OSError:
            state = ""  # `read_file` says what is wrong with it
        known = cache.image(path, state)
        features = self._read(key, known, cache) if known else None
        if features is not None:
            return Opened(features)
        data = read_file(path)  # one reading to hash and to decode: nothing can come between
        image = cache.remember(path, state, data)
        features = self._read(key, image, cache) if image != known else None
        if features is not None:
            return Opened(features)
        pixels = self._squares(key, data, str(path))
        return Opened(pixels=pixels, names=self._names(key, image), size=self._size(key))

    def _squares(self, key: str, source: Path | bytes, where: str) -> torch.Tensor:
        """(squares, 3, H, W). Raises `ImageError` for what is not as large, or not as long, as was counted on."""
        size = self._size(key)
        if size is None or not frames_of(size):
            return self._tiles(key, size, load_image(source, where=where))
        assert isinstance(self.mode, AnyResMode)
        frames = Film(source, where).frames(self.mode.tiling.frames)
        if film_size(len(frames)) != size:
            found, expected = f"{len(frames)} frames to show", f"{frames_of(size)}, as counted"
            raise ImageError(where, found=found, expected=expected, fix="begin again with the file as it is now")
        return self.mode.frames(frames)

    def _tiles(self, key: str, size: Size | None, picture: Picture) -> torch.Tensor:
        if size == PADDED:
            assert isinstance(self.mode, AnyResMode) and self.mode.beside is not None
            return self.mode.beside.tiles(picture)
        if size is not None and picture.size != size:
            found, expected = ("{} x {} pixels".format(*one) for one in (picture.size, size))
            fix = "put the file back as it was, or import the images again"
            raise ImageError(str(self.files[key]), found=found, expected=f"{expected}, as recorded", fix=fix)
        return self.mode.tiles(picture)

    def _size(self, key: str) -> Size | None:
        """By which the image counts, where that matters."""
        if self.sizes is None:
            return None
        return self.sizes[key] if file_key(key) == key else PADDED

    def _names(self, key: str, image: bytes) -> tuple[bytes, ...]:
        """What the features of an image's tiles are kept by. `image`: SHA-256 of the file."""
        size = self._size(key)
        if size is None or self.tiling is None:
            return (image,)
        return tuple(image + f"{size} {number}".encode() for number in range(self.tiling.tiles(size)))

    def _read(self, key: str, image: bytes, cache: FeatureCache) -> torch.Tensor | None:
        """(tiles, N, D), if the cache has every tile."""
        rows = []
        for name in self._names(key, image):
            row = cache.read(name)
            if row is None:
                return None
            rows.append(row)
        return torch.stack(rows)


class FeatureStore:
    """Features by image key; only pixels where `encode` is None because the tower trains.

    `encode`: (B, 3, H, W) -> (B, N, D), called under no_grad with B = `group`. `gather`: what makes tiles of an image's
    squares (`Llava.gather`); as they are where None. `keep`: the type features are rounded to, as `encode` gives them
    where None. Threads may ask at once.
    """

    def __init__(
        self,
        images: ImageFiles,
        encode: Callable[[torch.Tensor], torch.Tensor] | None,
        *,
        gather: Callable[[torch.Tensor, Sequence[Size]], torch.Tensor] | None = None,
        cache: FeatureCache | None = None,
        keep: torch.dtype | None = None,
        group: int = 1,
        budget: int = BUDGET,
    ) -> None:
        self._images, self._encode, self.cache, self.keep = images, encode, cache, keep
        self._gather = gather
        self.group, self.budget = group, budget
        self.read, self.computed = 0, 0
        """Images so far whose features came from the disk, and that went through the tower."""
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="images")
        self._lock = threading.Lock()
        self._wanted: dict[str, None] = {}
        self._opened: dict[str, Future[Opened]] = {}
        self._held: dict[str, torch.Tensor] | None = None

    def fill(self, keys: Iterable[str], bar: Progress) -> list[ImageError]:
        """Compute or read and hold all of these, or none if they exceed the budget. Returns errors of images that fail.

        Whether they fit is judged by those that were opened so far.
        """
        names, errors = sorted(set(keys)), []
        held: dict[str, torch.Tensor] = {}
        size = 0
        self.expect(names)
        for chunk in _chunks(names, CHUNK):
            opened = {key: self._try(key) for key in chunk}
            errors += [result for result in opened.values() if isinstance(result, ImageError)]
            good = {key: result for key, result in opened.items() if isinstance(result, Opened)}
            held |= zip(good, self._rows(list(good.values())), strict=True)
            size += sum(held[key].nbytes for key in good)
            if held and size / len(held) * len(names) > self.budget:
                self._expect_nothing()
                why = "more than memory holds" if self.budget else "none is kept (train.feature_cache: off)"
                bar.advance(0, note=f"{why}: the others when their turn comes")
                return errors
            bar.advance(len(chunk), note=f"{self.read:,} from the disk" if self.read else None)
        self._held = held or None
        if self.cache is not None:
            self.cache.flush()
        return errors

    @property
    def holds_all(self) -> bool:
        return self._held is not None

    def expect(self, keys: Iterable[str]) -> None:
        """Begin to open these in the background, so that `get` finds them ready."""
        if self._held is None:
            with self._lock:
                self._wanted |= dict.fromkeys(keys)
                self._begin()

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        """(n, N, D) features of the n tiles of some images, or (n, 3, H, W) pixels of their n squares, in order.

        Raises `ImageError` for one that cannot be opened.
        """
        held = self._held
        if held is None:
            unique = list(dict.fromkeys(keys))
            self.expect(unique)
            held = dict(zip(unique, self._rows([self._take(key) for key in unique]), strict=True))
        return torch.cat([held[key] for key in keys])

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep on the disk what waits for it, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.cache is not None:
            self.cache.close()

    # --- opening ahead ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Give the threads what is wanted, as far as there is room. The lock is held."""
        for key in list(islice(self._wanted, max(0, PENDING - len(self._opened)))):
            del self._wanted[key]
            if key not in self._opened:
                self._opened[key] = self._pool.submit(self._images.open, key, self.cache)

    def _take(self, key: str) -> Opened:
        with self._lock:
            self._wanted.pop(key, None)
            future = self._opened.pop(key, None) or self._pool.submit(self._images.open, key, self.cache)
            self._begin()
        return future.result()

    def _try(self, key: str) -> Opened | ImageError:
        try:
            return self._take(key)
        except ImageError as error:
            return error

    def _expect_nothing(self) -> None:
        with self._lock:
            for future in self._opened.values():
                future.cancel()
            self._opened, self._wanted = {}, {}

    # --- the tower ----------------------------------------------------------------------------------------------

    def _rows(self, opened: Sequence[Opened]) -> list[torch.Tensor]:
        """(tiles, N, D) of each image; on the CPU, where there is room for them, or (tiles, 3, H, W) pixels."""
        if self._encode is None:
            return [image.pixels for image in opened if image.pixels is not None]
        new = [image for image in opened if image.pixels is not None]
        tiles = [tile for image in new for tile in image.pixels]  # type: ignore[union-attr]
        made = iter([row for some in _chunks(tiles, self.group) for row in self._compute(some)])
        rows = []
        for image in opened:
            if image.features is not None:
                rows.append(image.features)
                continue
            found = torch.stack([next(made) for _ in image.pixels])  # type: ignore[union-attr]
            if self._gather is not None and image.size is not None:
                found = self._gather(found, [image.size])
            rows.append(found)
            if self.cache is not None:
                for name, row in zip(image.names, found, strict=True):
                    self.cache.write(name, row)
        self.read, self.computed = self.read + len(rows) - len(new), self.computed + len(new)
        return rows

    @torch.no_grad()
    def _compute(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """(b, N, D) of at most `group` tiles, rounded to `keep`."""
        assert self._encode is not None
        whole = torch.stack(pixels + pixels[-1:] * (self.group - len(pixels)))
        made = self._encode(whole)[: len(pixels)].cpu()
        kept = made if self.keep is None else made.to(self.keep)
        if kept.dtype != made.dtype and not kept.isfinite().all():
            found = f"features of the vision tower up to {made.abs().max():,.0f}"
            fix = "set train.feature_cache: auto"
            raise TrainingError("train.feature_cache: fp16", found=found, expected="numbers below 65,504", fix=fix)
        return kept


def group_of(device: torch.device) -> int:
    """Tiles that go through a frozen tower at once."""
    return 1 if device.type == "cpu" else GROUP


def open_store(
    llava: Llava,
    files: Mapping[str, Path],
    spec: TrainSpec,
    *,
    sizes: Sizes | None = None,
    say: Callable[[str], None],
) -> FeatureStore:
    """The store a run needs: with a cache on the disk if the tower is frozen and the recipe has one.

    `spec.feature_cache: auto` is `on` here: the choice is made by `feature_choice.py`.
    """
    images = ImageFiles(files, llava.image_mode, tiling=llava.tiling, sizes=sizes)
    if llava.vision_trains:
        return FeatureStore(images, None)
    group = group_of(llava.device)
    keep = torch.float16 if spec.feature_cache == "fp16" else next(llava.tower.parameters()).dtype
    cache = None
    if spec.feature_cache != "off":
        key, budget = feature_key(llava, keep, group), int(spec.feature_cache_gb * 2**30)
        writes = spec.feature_cache != "read"
        cache = FeatureCache(key, budget=budget, say=say, writes=writes, files=files.values())
    held = 0 if spec.feature_cache == "off" else BUDGET
    options: dict[str, Any] = {"gather": llava.gather, "cache": cache, "keep": keep, "group": group, "budget": held}
    return FeatureStore(images, llava.tower_features, **options)


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while chunk := list(islice(waiting, size)):
        yield chunk
