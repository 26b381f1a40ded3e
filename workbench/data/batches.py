"""One function over many items, a batch at a time in other processes, in order, with progress.

Knows: a local pool of processes, backpressure, and which item it was that killed a worker. A Ray cluster does the same
(`ray_batches.py`).
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
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from workbench.errors import DataError, MissingPackageError
from workbench.progress import progress

ENGINE = "WORKBENCH_ENGINE"
_used: ContextVar[str | None] = ContextVar("engine", default=None)
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
    engine: str | None = None,
    size: Callable[[Item], int] = lambda _: 1,
    before: int = 0,
) -> Iterator[Result]:
    """The results for all items, in their order. `workers` None uses every processor; 1 stays in this process.

    `engine`: `local`, a pool of processes here, or `ray`, the cluster that Ray finds or a local one that it starts;
    None takes that of `use_engine`. Results and errors are the same. `size`: how much an item counts in the progress,
    which begins at `before`: so much was done by an earlier try.

    An exception of the function ends it, with a note that names the item. An item whose worker process dies (a decoder
    that crashes, no memory left) gets the result `on_crash(item)`; without `on_crash` it raises a `DataError` that
    names the item. Raises `DataError` for an unknown engine and `MissingPackageError` for Ray where it is not
    installed.
    """
    run = _engine(engine)
    if not items and not before:
        return
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    if len(batches) <= 1 or workers == 1:
        run = _here
    left = iter(items)
    with progress(description, total=before + sum(map(size, items)), before=before) as bar:
        for results in run(function, batches, workers, on_crash):
            yield from results
            bar.advance(sum(map(size, islice(left, len(results)))))


@contextmanager
def use_engine(name: str | None) -> Iterator[None]:
    """What `map_batches` takes inside this block; None leaves it as it is: `$WORKBENCH_ENGINE`, else `local`."""
    token = _used.set(name or _used.get())
    try:
        yield
    finally:
        _used.reset(token)


def engine_in_use() -> str:
    return _used.get() or os.environ.get(ENGINE) or "local"


def _engine(name: str | None) -> Callable[..., Iterator[list[Any]]]:
    """What runs the batches. Raises `DataError` and `MissingPackageError` as `map_batches` says."""
    name = name or engine_in_use()
    if name not in ("local", "ray"):
        raise DataError(f"engine, or ${ENGINE}", found=repr(name), expected="local or ray")
    if name == "local":
        return _in_pool
    if find_spec("ray") is None:
        fix = "pip install 'llava-workbench[ray]', or leave the engine out"
        raise MissingPackageError("engine ray", found="no package ray", fix=fix)
    from workbench.data.ray_batches import in_ray

    return in_ray


def call(function: Callable[[Item], Result], item: Item) -> Result:
    """The function's result. An exception that leaves it says which item it was about."""
    try:
        return function(item)
    except Exception as problem:
        problem.add_note(f"while working on {str(item)[:200]}")
        raise


def _here(function: Callable[[Item], Result], batches: Sequence[Sequence[Item]], *_: object) -> Iterator[list[Result]]:
    for batch in batches:
        for item in batch:
            yield [call(function, item)]


def usable_processors() -> int:
    """Processors that this process may use: fewer than the machine has under taskset or in a batch queue."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_pool(
    function: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    workers: int | None,
    on_crash: Callable[[Item], Result] | None,
) -> Iterator[list[Result]]:
    count = min(workers or usable_processors(), len(batches))
    if count == 1:
        yield from _here(function, batches)
        return
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
    return [call(function, item) for item in items]


def _one_by_one(
    function: Callable[[Item], Result], items: Sequence[Item], on_crash: Callable[[Item], Result] | None
) -> list[Result]:
    """Each item on its own, to learn which of them it is that kills its process."""
    pool = _start(1)
    results = []
    try:
        for item in items:
            try:
                results.append(pool.submit(call, function, item).result())
            except BrokenProcessPool:
                results.append(crashed(item, on_crash))
                pool = _start(1)
        return results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def crashed(item: Item, on_crash: Callable[[Item], Result] | None) -> Result:
    """The result of an item whose process died. Raises `DataError` where there is none."""
    if on_crash is None:
        fix = "take it out, or give the machine more memory"
        raise DataError(str(item), found="its worker process died while working on it", fix=fix) from None
    return on_crash(item)


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
