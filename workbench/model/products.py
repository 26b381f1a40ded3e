"""Products of float32 matrices, by oneDNN on the processors where it is twice as fast as what torch calls.

torch hands them to MKL, which uses AVX-512 on Intel's processors alone. One core of an AMD EPYC (family 26), rows of
2,048, 512 to 1,024 wide: 105 GFLOP/s by MKL, 246 by oneDNN; the same digits but for the last.
Knows: which processors those are. Does not know: layers.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

LARGE = 1 << 27
"""Operations from which on a product goes to oneDNN, which makes code of its own for every shape (half a megabyte)."""
ROWS = 64
"""Rows are filled up to a multiple, and the inner length has to be one, so that shapes are few: otherwise that code,
which is never let go, came to 1.5 GB in a run of 500 packs of different lengths."""
CPUINFO = Path("/proc/cpuinfo")


@cache
def by_onednn() -> bool:
    """Whether this is such a processor. Told by its name and not by a measurement, so that a run that goes on later
    has the same bits."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return "AuthenticAMD" in (CPUINFO.read_text() if CPUINFO.is_file() else platform.processor())


def fits(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this product goes to oneDNN. `rows` (n, in), `weight` (out, in)."""
    if torch.compiler.is_compiling():  # no product of its own is known to the compiler
        return False
    plain = rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32
    shaped = rows.shape[1] % ROWS == 0 and 2 * rows.numel() * len(weight) >= LARGE
    return plain and shaped and by_onednn() and not torch.is_autocast_enabled("cpu")


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(n, in) rows, (out, in) weight, (out,) bias -> (n, out), without a gradient where oneDNN makes it."""
    if fits(rows, weight):
        count = len(rows)
        if count % ROWS:
            rows = functional.pad(rows, (0, 0, 0, -count % ROWS))
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")[:count]
    return functional.linear(rows, weight, bias)


if torch.backends.mkldnn.is_available():

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _operations(rows: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        """Of such a product, by the shapes, for whoever counts operations as torch does."""
        return 2 * prod(rows) * weight[0]
