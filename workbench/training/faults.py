"""Which sample a failure in the middle of a run comes from, and in which process.

Knows: how to name the conversations behind an image that cannot be opened, a pack for which memory runs out, or a loss
that is no number.
Does not know: how the other processes hear of it (peers.py), or the refusals before step 1 (examples.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from workbench.errors import ImageError, TrainingError
from workbench.inference.failures import short_of_memory
from workbench.training.batch import Batch
from workbench.training.distributed import Processes

SHOWN = 3
"""So many conversations are named; the rest are counted."""


@contextmanager
def named_images(step: int, processes: Processes, users: Callable[[str], Iterable[str]]) -> Iterator[None]:
    """Say of an image that fails in here which conversations need it; `users`: path -> their ids."""
    try:
        yield
    except ImageError as error:
        where = f"step {step}, {some(list(users(error.where)))}"
        if processes.world > 1:
            where += f", {processes}"
        fix = "put the file back as it was and add --resume, or quarantine the image and start again"
        raise TrainingError(where, found=f"{error.where}: {error.found or error}", fix=fix) from error


@contextmanager
def named_memory(step: int, processes: Processes, batch: Batch | None = None) -> Iterator[None]:
    """Say of memory that runs out in here which pack of conversations needed it, or that the optimiser did (`batch`
    None), and in which process."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        where = f"step {step}" + (f", {some(batch.ids)}" if batch else "")
        if processes.world > 1:
            where += f", {processes}"
        needed = f"a pack of {batch.input_ids.numel():,} tokens" if batch else "the optimiser"
        found = f"no memory left on {processes.device} for {needed}"
        fix = "set train.checkpointing: on or smaller train.pack_tokens, as `workbench plan` advises"
        fix = fix if batch else "set train.optimizer: adamw8bit and start again"
        fix += ", or free what else takes memory there, and add --resume"
        raise TrainingError(where, found=found, fix=fix) from error


def no_number(parts: Sequence[tuple[Batch, torch.Tensor]]) -> list[str]:
    """Ids of the conversations in which a token's loss is no number. `parts`: batches and their (K,) losses."""
    found: dict[str, None] = {}
    for batch, losses in parts:
        wrong = batch.conversations[~torch.isfinite(losses)]
        found |= {batch.ids[number]: None for number in wrong.tolist()}
    return list(found)


def refuse_loss(
    step: int, found: str, parts: Sequence[tuple[Batch, torch.Tensor]], processes: Processes, *, latest: str
) -> None:
    """Raise `TrainingError` in every process for a loss or gradient that is no number, naming the conversations."""
    count = sum(len(batch.ids) for batch, _ in parts)
    told = processes.gather((no_number(parts), count))
    wrong, everything = sum(len(ids) for ids, _ in told), sum(number for _, number in told)
    places = [f"{some(ids)} (rank {rank})" if len(told) > 1 else some(ids) for rank, (ids, _) in enumerate(told) if ids]
    which = "every conversation" if wrong == everything else ", ".join(places) or "no single conversation"
    fix = f"look at what it was trained on, lower train.lr, or set train.clip, and start again; {latest}"
    raise TrainingError(f"step {step}", found=f"{found} in {which}", expected="a number", fix=fix)


def some(ids: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more if ids else "an unknown conversation"
