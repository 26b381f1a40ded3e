"""The conditions a run works under: threads, random numbers, signals; all as before when it ends.

Knows: how to set them and put them back. Does not know: what a run does.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch

from workbench.training.launch import HANGUP, asks


@contextmanager
def conditions(threads: int | None) -> Iterator[threading.Event]:
    """So many CPU threads, random numbers of its own, and an event that is set when the process is asked to end."""
    before, numbers = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    frozen = gc.get_freeze_count()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), asked_to_end() as asked:
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield asked
        finally:
            if not frozen:  # by somebody else
                gc.unfreeze()
            torch.set_num_threads(before)
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])


@contextmanager
def long_lived() -> Iterator[None]:
    """What is made inside stays: the search for garbage in cycles does not walk it, neither meanwhile nor later.

    A million conversations are several million objects, and walking them again and again takes longer than making them.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if running:
            gc.enable()


@contextmanager
def asked_to_end() -> Iterator[threading.Event]:
    """An event set by the first SIGTERM or Ctrl-C, or as the terminal closes, so that a run can save and stop; the
    second one acts as ever.

    Signals reach the main thread only: elsewhere (a notebook's worker) the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in asks()}
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def ask(number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            _let_go(terminals)
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go(terminals: Sequence[int]) -> None:
    """Have what is printed go nowhere: a line to a terminal that is gone would end the run before it saves."""
    with open(os.devnull, "w") as nowhere:
        for stream in terminals:
            os.dup2(nowhere.fileno(), stream)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one step on one process: they follow from these three, so a resumed run draws the same.

    torch's on every device, and those of Python and NumPy for a hook or a dropout of somebody else's.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(4)
    number = int.from_bytes(words.tobytes()[:8], "little")
    torch.manual_seed(number >> 1)  # below 2**63
    random.seed(number)
    np.random.seed(words)
