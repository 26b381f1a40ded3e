"""One process of several fails: the others learn which one and why, and end at once instead of waiting for it.

Knows: the store through which the processes of a run met, what is written there by the first that fails, and how to
end a process whose main thread waits for a sum that will never come.
Does not know: what a run does, what is saved. Ending is safe at any moment, as a kill is.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from types import TracebackType

import torch.distributed as dist

from workbench.errors import TrainingError, WorkbenchError

POLL_SECONDS = 0.2
"""How often a process looks whether another one failed."""
GRACE_SECONDS = 3.0
"""So long a process whose peer failed may take to come out of what it does by itself."""
_runs = count()
"""Every run of a process has its own place in the store; all processes count alike."""


class PeerError(TrainingError):
    """Another process of this run failed; the message is that process's own, with its rank."""


class Peers:
    """The other processes of a run, watched by a thread for as long as the block lasts. Alone it does nothing.

    An error that leaves the block is told to the others. One that is only the echo of another's failure (a connection
    that broke) is replaced by a `PeerError` that says what happened there.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._lost: Callable[[BaseException], object] = _nothing
        self._key, self._done, self._busy = f"workbench/failed/{next(_runs)}", threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Peers:
        if self.world > 1:
            self._store, watched = _connect(), _connect()  # one for each thread
            self._thread = threading.Thread(target=self._watch, args=(watched,), name="peers", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            told = None if error is None else self._explain(error)
        finally:
            self._done.set()
            if self._thread is not None:
                self._thread.join()
                if error is None:
                    self._part()
        if told is not None and told is not error:
            raise told from None

    @contextmanager
    def failing(self, lost: Callable[[BaseException], object]) -> Iterator[None]:
        """A block whose failure, here or in another process, is first told to `lost`."""
        self._lost = lost
        try:
            yield
        except BaseException as error:
            told = self._explain(error)
            lost(told)
            if told is error:
                raise
            raise told from None
        finally:
            self._lost = _nothing

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """A block that is let finish when another process fails, such as saving; it must not wait for the others."""
        with self._busy:
            yield

    # --- inside ---------------------------------------------------------------------------------------------------

    def _explain(self, error: BaseException) -> BaseException:
        """What to raise for an error of this process: the error, or the other's failure that it comes from."""
        if self.world == 1 or isinstance(error, PeerError):
            return error
        if isinstance(error, RuntimeError):  # as torch says it when the connection to another process breaks
            found = self._wait_for_other()
            if found is not None:
                return found
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                error = PeerError(f"rank {self.rank} of {self.world}", found=f"{_GONE} ({_line(error)})", fix=_RESUME)
        self._tell(error)
        return error

    def _part(self) -> None:
        """The first process, whose store this may be, leaves last: the others may still be on their way out."""
        key, until = f"{self._key}/left", time.monotonic() + GRACE_SECONDS
        with suppress(RuntimeError):
            left = self._store.add(key, int(self.rank != 0))
            while self.rank == 0 and left < self.world - 1 and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 10)
                left = self._store.add(key, 0)

    def _tell(self, error: BaseException) -> None:
        said = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {_line(error)}"
        fields = {"rank": self.rank, "host": socket.gethostname(), "said": said}
        try:
            self._store.compare_set(self._key, "", json.dumps(fields))  # the first one counts
        except RuntimeError:
            return  # the store is gone with its process, which is failure enough for the others

    def _wait_for_other(self) -> PeerError | None:
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until:
            found = self._look(self._store)
            if found is not None:
                return found
            time.sleep(POLL_SECONDS)
        return None

    def _look(self, store: dist.Store) -> PeerError | None:
        """The failure of another process, if there is one."""
        try:
            if not store.check([self._key]):
                return None
            told = json.loads(store.get(self._key))
        except (RuntimeError, ValueError):
            return PeerError(f"rank {self.rank} of {self.world}", found=_GONE, fix=_RESUME)
        if told["rank"] == self.rank:
            return None
        where = f"rank {told['rank']} of {self.world}"
        if told["host"] != socket.gethostname():
            where += f" on {told['host']}"
        return PeerError(told["said"] if where in told["said"] else f"{where}, {told['said']}")

    def _watch(self, store: dist.Store) -> None:
        while not self._done.wait(POLL_SECONDS):
            found = self._look(store)
            if found is None:
                continue
            if self._done.wait(GRACE_SECONDS):
                return
            with self._busy:
                self._lost(found)
                print(f"error: {found}", file=sys.stderr, flush=True)
                os._exit(1)


_GONE = "another process gone without a word: killed, out of memory, or its machine is lost"
_RESUME = "look at what it said last; the run can be resumed from its latest checkpoint"


def _connect() -> dist.TCPStore:
    """A connection of its own to the store where `env://` let the processes meet."""
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(where, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _nothing(error: BaseException) -> None:
    """Nobody to tell."""
