"""Why a pass failed, as far as it matters: memory that ran out, in words for whoever asked.

Knows: how torch says that there is no memory, on a CPU and on a GPU. Does not know: requests, or what is tried next.
"""

from __future__ import annotations

import torch

from workbench.errors import ModelError

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def short_of_memory(problem: Exception) -> bool:
    told = str(problem).lower()
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or any(one in told for one in _NO_MEMORY)


def explained(problem: Exception, tokens: int) -> Exception:
    """`problem`, or for one of memory a `ModelError` about a prompt of so many tokens; memory that is free is freed."""
    if not short_of_memory(problem):
        return problem
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    error = ModelError(
        "this answer",
        found=f"no memory left for a prompt of {tokens:,} tokens",
        fix="ask fewer at once, shorten it, give smaller or fewer images, or load the model in 4bit",
    )
    error.__cause__ = problem
    return error
