"""`workbench train --processes N`: the same command N times on this machine, as one.

Knows: what each process has to be told so that they meet, and that all end when one fails or when the first is asked
to. Does not know: training, torch. Several machines are for `torchrun` and `accelerate launch`, which tell their
processes the same things.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from workbench.errors import WorkbenchError, kind_of

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""A terminal that closes, or a connection that is lost; Windows has none."""
PATIENCE_SECONDS = 15.0
"""So long may the others take to end by themselves after one failed."""
POLL_SECONDS = 0.1


def asks() -> list[signal.Signals]:
    """What asks a run to save and stop. Under `nohup`, which has it ignored, a terminal may close."""
    found = [signal.SIGTERM, signal.SIGINT]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        found.append(HANGUP)
    return found


def check_processes(processes: int) -> None:
    """Raise `WorkbenchError` for what is no number of processes."""
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise WorkbenchError("processes", found=kind_of(processes), expected="a whole number of at least 1")


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `workbench ARGUMENTS` so many times together; returns the exit status. Ctrl-C and SIGTERM reach each once.

    Raises `WorkbenchError` for a number of processes below one.
    """
    check_processes(processes)
    started: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    with _forwarded(started):
        try:
            for rank, environment in enumerate(_environments(processes)):
                quiet = None if rank == 0 else subprocess.DEVNULL
                started.append(
                    subprocess.Popen(command, env=os.environ | environment, stdout=quiet, start_new_session=True)
                )
            _wait(started)
        finally:
            _end(started)
    return _status([process.returncode for process in started])


def _environments(processes: int) -> Iterator[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    for rank in range(processes):
        yield {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        }  # fmt: skip


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or one has failed and the others had their time to end."""
    deadline = None
    while None in (codes := [process.poll() for process in started]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + PATIENCE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(POLL_SECONDS)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.kill()  # safe at any moment: what was saved is whole
        process.wait()


def _status(codes: Sequence[int]) -> int:
    """The first process's status, which is the run's, unless another one failed alone; names those that were killed."""
    for rank, code in enumerate(codes):
        if code in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
            name = signal.Signals(-code).name
            print(f"error: rank {rank} of {len(codes)} was ended by {name}; out of memory?", file=sys.stderr)
    failed = next((code for code in codes if code), 0)
    code = codes[0] or failed
    return code if code >= 0 else 1


@contextmanager
def _forwarded(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass on what asks to end: the first lets the run save and stop, the second ends it."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number if number == HANGUP else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in asks()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
