"""One function over many items, a batch at a time in other processes, in order, with progress.

Knows: a local pool of processes, backpressure, and which item it was that killed a worker.
Does not know: what the function does. It takes one item and is defined at the top of a module, because it travels to
the workers by name.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

from workbench.errors import DataError
from workbench.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_batches(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    on_crash: Callable[[Item], Result] | None = None,
) -> Iterator[Result]:
    """The results for all items, in their order. `workers` None uses every processor; 1 stays in this process.

    An exception of the function ends it. An item whose worker process dies (a decoder that crashes, no memory left)
    gets the result `on_crash(item)`; without `on_crash` it raises a `DataError` that names the item.
    """
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    count = min(workers or usable_processors(), len(batches))
    with progress(description, total=len(items)) as bar:
        if count <= 1:
            for item in items:
                yield function(item)
                bar.advance()
            return
        for results in _in_pool(function, batches, count, on_crash):
            yield from results
            bar.advance(len(results))


def usable_processors() -> int:
    """Processors that this process may use: fewer than the machine has under taskset or in a batch queue."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_pool(
    function: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    count: int,
    on_crash: Callable[[Item], Result] | None,
) -> Iterator[list[Result]]:
    pool = _start(count)
    running: deque[tuple[int, Future[list[Result]]]] = deque()
    following = 0
    try:
        while running or following < len(batches):
            try:
                while following < len(batches) and len(running) < 2 * count:  # the rest waits here, not in memory
                    running.append((following, pool.submit(_batch, function, batches[following])))
                    following += 1
                results = running[0][1].result()
                running.popleft()
                yield results
            except BrokenProcessPool:
                pool.shutdown(wait=True, cancel_futures=True)
                first = running.popleft()[0] if running else following
                following = first + 1
                running.clear()
                yield _one_by_one(function, batches[first], on_crash)
                pool = _start(count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batch(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item], on_crash: Callable[[Item], Result] | None
) -> list[Result]:
    """Each item on its own, to learn which of them it is that kills its process."""
    pool = _start(1)
    results = []
    try:
        for item in items:
            try:
                results.append(pool.submit(function, item).result())
            except BrokenProcessPool:
                if on_crash is None:
                    fix = "take it out, or give the machine more memory"
                    found = "its worker process died while working on it"
                    raise DataError(str(item), found=found, fix=fix) from None
                results.append(on_crash(item))
                pool = _start(1)
        return results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(count: int) -> ProcessPoolExecutor:
    # Not forked from here: polars and torch have threads, and a forked copy of a process with threads can hang.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        fix = "put the script's own calls under `if __name__ == '__main__':`, or pass workers=1"
        raise DataError("worker processes", found="that they cannot start", fix=fix) from None
    return pool


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
