"""How much memory a process holds, and the most it held: that of its work, not that of the libraries it imported.

Knows: what the system counts (resident pages; on CUDA what was allocated), which of that are pages of libraries' files,
and that free pieces inside the heap of the C library are no place for a tensor while something is measured.
Does not know: models, or what is measured.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HOLES = 1 << 26, 1 << 16
"""Bytes of the largest and of the smallest free piece of the heap that is looked for."""


def held_now(device: torch.device) -> int:
    """Bytes this process holds now; `most_held` counts from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif STATUS.is_file():
        ctypes.CDLL(None).malloc_trim(0)
        fill_holes()
    forget_most(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not STATUS.is_file():  # macOS, Windows
        return psutil.Process().memory_info().rss
    return _status("VmRSS") - _of_libraries()


def forget_most(device: torch.device) -> None:
    """Let `most_held` count from now on; without effect on a CPU under macOS and Windows, whose count is never less."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.is_file():
        RESET.write_text("5")


def most_held(device: torch.device) -> int:
    """Most bytes this process held since `held_now` or `forget_most`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not STATUS.is_file():
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _status("VmHWM") - _of_libraries()


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def fill_holes() -> None:
    """Take the free pieces inside the heap for good, untouched; nothing is done where the C library is not glibc.

    A tensor that fell into one would leave its pages behind when it goes (`tighten` has only those outside given back),
    and the peak would count them beside what comes after: up to 16 MB, which the imports had left.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes, library.mallinfo2.restype = [ctypes.c_void_p], _Heap
    size, least = HOLES
    while size >= least:
        before, piece, after = library.mallinfo2(), library.malloc(size), library.mallinfo2()
        if after.hblks > before.hblks or after.arena > before.arena:  # it came from the system: no hole is as large
            library.free(piece)
            size = size * 3 // 4


def _of_libraries() -> int:
    """Bytes of pages of libraries' files, which come into memory as their code is used for the first time."""
    return sum(each.rss for each in psutil.Process().memory_maps() if ".so" in Path(each.path).name)


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
