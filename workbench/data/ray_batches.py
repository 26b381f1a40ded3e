"""The batches of `map_batches` on a Ray cluster, by Ray Data.

Knows: Ray's settings that keep the order, the words and the exceptions as they are with local processes.
Does not know: what the function does. It runs where the workers are: they need this package and the same file paths.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workbench.data.batches import Item, Result, call, crashed


def in_ray(
    function: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    workers: int | None,
    on_crash: Callable[[Item], Result] | None,
) -> Iterator[list[Result]]:
    """The results of each batch, in order, from `workers` processes of the cluster at a time (None: all that it has).

    A batch during which a worker process dies is done once more, item by item.
    """
    ray = _connected()
    done = 0
    while done < len(batches):
        try:
            for results in _stream(function, batches[done:], workers):
                done += 1
                yield results
        except _deaths(ray):
            yield [_alone(ray, function, item, on_crash) for item in batches[done]]
            done += 1


def _alone(ray: Any, function: Callable[[Item], Result], item: Item, on_crash: Callable[[Item], Result] | None) -> Any:
    try:
        (result,) = _result(ray.get(ray.remote(max_retries=0)(_tried).remote(function, [item])))
        return result
    except _deaths(ray):
        return crashed(item, on_crash)


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    return ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError


def _stream(
    function: Callable[[Item], Result], batches: Sequence[Sequence[Item]], workers: int | None
) -> Iterator[list[Result]]:
    """Raises what the function raises, and Ray's exceptions for a worker that died."""
    import ray

    def work(row: dict[str, Any]) -> dict[str, bytes]:
        return {"results": _tried(function, pickle.loads(row["items"]))}

    rows = ray.data.from_items([{"items": pickle.dumps(batch)} for batch in batches], override_num_blocks=len(batches))
    with warnings.catch_warnings():
        # Ray would try a batch that kills its process for ever. From 2.64 on it wants this said in another way.
        warnings.simplefilter("ignore")
        made = rows.map(work, concurrency=workers and min(workers, len(batches)), max_retries=0)
    for row in made.iter_rows():
        yield _result(row["results"])


def _result(told: bytes) -> Any:
    results = pickle.loads(told)
    if isinstance(results, Exception):
        raise results
    return results


def _tried(function: Callable[[Item], Result], items: Sequence[Item]) -> bytes:
    """The results, or the exception, which Ray would wrap into one of its own."""
    try:
        return pickle.dumps([call(function, item) for item in items])
    except Exception as problem:
        return pickle.dumps(problem)


def _connected() -> Any:
    """Ray, connected to the cluster of $RAY_ADDRESS or one on this machine, else to a local one that ends with us."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # there is one of our own
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the person as exceptions
    return ray
