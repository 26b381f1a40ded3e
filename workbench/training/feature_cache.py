"""Features kept on the disk for all runs of this machine: `state_folder()/features`, one folder for each `feature_key`.

Knows: a budget in bytes for all of them together, who was used least recently (a whole set goes; of its own, images
that this run does not need), what to write when, and what to tell.
A run may also only read what earlier ones left.
Does not know: how a row lies on the disk (`feature_rows.py`), what decides its numbers (`feature_key.py`), towers.

Nothing here stops a run. Damage is dropped and computed anew; a disk that is full or cannot be written ends the
writing, and is told once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from workbench.errors import WorkbenchError
from workbench.resources import size_of, state_folder
from workbench.training.feature_rows import DamagedRow, FeatureRows, content_of, is_damage, is_settled

FOLDER = "features"
FLUSH_BYTES = 64 << 20
"""Features that wait in memory before they are written; twice that while they are."""
RESERVE = 2 << 30
"""Bytes of the disk that are left to others."""
T = TypeVar("T")


def room_on_disk(budget: int) -> int:
    """Bytes that features may take in the state folder: the budget, or what the disk leaves beside those kept now."""
    state = state_folder()
    free = shutil.disk_usage(state).free - RESERVE + size_of(state / FOLDER)
    return max(0, min(budget, free))


class FeatureCache:
    """The features of one tower and its settings. Threads may read at once; one thread writes."""

    def __init__(
        self,
        key: Mapping[str, Any],
        *,
        budget: int,
        say: Callable[[str], None],
        reserve: int = RESERVE,
        flush_bytes: int = FLUSH_BYTES,
        writes: bool = True,
        files: Collection[Path] = (),
    ) -> None:
        """`key`: see `feature_key`. `budget`: bytes of all sets together. `say` is told, once each, what goes wrong.
        `files`: those that will be asked for: where room is needed, features of others' go.

        `writes`: whether images are added; where they are not, and there is no set, nothing is made.
        """
        self.dtype, self.shape = getattr(torch, key["dtype"]), tuple(key["shape"])
        self.row_bytes = self.dtype.itemsize * math.prod(self.shape)
        self.budget, self.reserve, self.flush_bytes, self.say = budget, reserve, flush_bytes, say
        self.damaged, self.files = 0, files
        self._told = set[str]()
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._rows, self._being_written = dict[bytes, torch.Tensor](), dict[bytes, torch.Tensor]()
        self._files, self._broken = dict[str, tuple[str, bytes]](), list[tuple[bytes, int]]()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="features")
        self._writing: Future[None] | None = None
        about = json.dumps(key, sort_keys=True, indent=1)
        self._set = self._open(about, make=writes)
        self._writes = writes and self._set is not None

    @property
    def writes(self) -> bool:
        """Whether images are still added."""
        return self._writes

    @property
    def count(self) -> int:
        """Images whose features are on the disk now."""
        return self._safely(lambda kept: kept.count) or 0

    # --- reading ------------------------------------------------------------------------------------------------

    def image(self, path: Path, state: str) -> bytes | None:
        """The SHA-256 of a file in this `state` (`state_of`), if it was read in it before; saves reading it."""
        with self._lock:
            held = self._files.get(str(path))
        if held and held[0] == state:
            return held[1]
        return self._safely(lambda kept: kept.known(path, state))

    def remember(self, path: Path, state: str, data: bytes) -> bytes:
        """The SHA-256 of a file's bytes. `state`: the file's before they were read, and still after."""
        image = content_of(data)
        if state and is_settled(state):
            with self._lock:
                self._files[str(path)] = (state, image)
        return image

    def read(self, image: bytes) -> torch.Tensor | None:
        """Features of the image with this SHA-256; None where they are not kept, or are damaged."""
        with self._lock:
            waiting = self._rows.get(image, self._being_written.get(image))
        if waiting is not None:
            return waiting
        row = self._safely(lambda kept: self._read(kept, image))
        return None if row is None else row.view(self.dtype).view(self.shape)

    def _read(self, kept: FeatureRows, image: bytes) -> torch.Tensor | None:
        try:
            row = kept.read(image)
            return None if row is None else torch.from_numpy(row)
        except DamagedRow as error:
            with self._lock:
                self._broken.append((image, error.slot))
                self.damaged += 1
            self._tell("damaged", f"{kept.folder}: {error}; such features are computed anew")
            return None

    # --- writing ------------------------------------------------------------------------------------------------

    def write(self, image: bytes, row: torch.Tensor) -> None:
        """Keep an image's features: on the disk soon, in the background, while there is room."""
        if not self._writes:
            return
        if row.dtype != self.dtype or tuple(row.shape) != self.shape:
            self._stop(f"{row.dtype} {tuple(row.shape)} instead of {self.dtype} {self.shape}: no features are kept")
            return
        with self._lock:
            self._rows[image] = row
            full = len(self._rows) * self.row_bytes >= self.flush_bytes
        if full:
            self.flush(wait=False)

    def flush(self, *, wait: bool = True) -> None:
        """Write what waits in memory, after what is being written."""
        with self._flushing:
            if self._writing is not None:
                self._writing.result()
            if self._writes:
                with self._lock:
                    self._being_written, self._rows = self._rows, {}
                    files, self._files = self._files, {}
                    broken, self._broken = self._broken, []
                if self._being_written or files or broken:
                    self._writing = self._writer.submit(self._write, self._being_written, files, broken)
            if wait and self._writing is not None:
                self._writing.result()

    def close(self) -> None:
        """Write what waits, and end."""
        self.flush()
        self._writer.shutdown()
        kept, self._set, self._writes = self._set, None, False
        self._told.add("unread")  # of whoever still reads
        if kept is not None:
            kept.close()

    def _write(
        self, held: dict[bytes, torch.Tensor], files: dict[str, tuple[str, bytes]], broken: list[tuple[bytes, int]]
    ) -> None:
        rows = {image: row.contiguous().flatten().view(torch.uint8).numpy() for image, row in held.items()}
        ours = self.files if self.budget >= self.row_bytes else None
        done = self._safely(lambda kept: kept.write(rows, files, broken, self._make_room, ours), stop=True)
        if done is not None and done[1] < done[0]:
            limit = (
                f"train.feature_cache_gb = {self.budget / 2**30:g}, of the disk {self.reserve / 2**30:g} GB stay free"
            )
            self._stop(f"full with {self.count:,} images ({limit}): the others are computed each time")
        with self._lock:
            self._being_written = {}

    def _make_room(self, wanted: int) -> int:
        """Bytes that may be written, after the sets used least recently had to go for them."""
        if self.budget < self.row_bytes:
            return 0
        home = self._home()
        others = sorted((path for path in home.iterdir() if path.is_dir() and path != self._folder), key=_last_use)
        while (room := self._room(home)) < wanted and others:
            remove(others.pop(0))
        return room

    def _room(self, home: Path) -> int:
        return min(self.budget - size_of(home), shutil.disk_usage(home).free - self.reserve)

    # --- what can go wrong --------------------------------------------------------------------------------------

    def _home(self) -> Path:
        return state_folder() / FOLDER

    def _open(self, about: str, *, make: bool) -> FeatureRows | None:
        """The set; a damaged one is removed and begun anew. None where that cannot be, or is not asked for."""
        try:
            self._folder = self._home() / hashlib.sha256(about.encode()).hexdigest()[:32]
            if not make and not self._folder.is_dir():
                return None
            try:
                return FeatureRows(self._folder, self.row_bytes, about)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.damaged += 1
                self._tell("damaged", f"{self._folder}: {error}; such features are computed anew")
                remove(self._folder)
                return FeatureRows(self._folder, self.row_bytes, about)
        except (OSError, WorkbenchError, sqlite3.Error) as error:
            self._stop(f"{error}: no features are kept")
            return None

    def _safely(self, do: Callable[[FeatureRows], T], *, stop: bool = False) -> T | None:
        """What it gives; None, and the reason told once, where the disk or the index is not as it should be."""
        kept = self._set
        if kept is None:
            return None
        try:
            return do(kept)
        except (OSError, WorkbenchError, sqlite3.Error) as error:
            if is_damage(error):
                self._set = None  # not closed: other threads may be reading
                self.damaged += 1
                remove(kept.folder)
                self._stop(f"{error}: {kept.folder} is removed")
            elif stop:
                self._stop(f"{error}: no more features are kept")
            else:
                self._tell("unread", f"feature cache: {error}; what cannot be read is computed anew")
        return None

    def _stop(self, reason: str) -> None:
        self._writes = False
        self._tell("stopped", f"feature cache: {reason}")

    def _tell(self, what: str, text: str) -> None:
        with self._lock:
            told = what in self._told
            self._told.add(what)
        if not told:
            self.say(text)


def remove(folder: Path) -> None:
    """Remove a set: at once for whoever looks for it, while a process that reads it goes on with what it opened."""
    aside = folder.with_name(f".{folder.name.strip('.')}.{os.getpid()}.old")
    try:
        os.replace(folder, aside)
    except OSError:
        aside = folder
    shutil.rmtree(aside, ignore_errors=True)


def _last_use(folder: Path) -> float:
    try:
        return (folder / "key.json").stat().st_mtime
    except OSError:  # half removed
        return 0.0
