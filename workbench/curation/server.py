"""Our own MongoDB server: started, found again, ended.

Knows: mongod's command line, its log and its lock file, free ports.
Does not know: who uses the server (`database.py`), or which program it is (`mongod.py`).

It listens on 127.0.0.1 only. It is found again by the lock file that mongod itself keeps, so that one which outlived
a killed process is used on instead of standing in the way.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from workbench.curation.mongod import INSTALL, Mongod, exit_reason, find_mongods
from workbench.errors import DatabaseError, DiskError, WorkbenchError

MEGABYTES_NEEDED = 200
START_SECONDS = 60.0


def start(folder: Path, port: int | None = None) -> int:
    """Start the first mongod that will; return its port. `port`, where given and free, is taken.

    Raises `DatabaseError` with everything that was tried, or `DiskError`.
    """
    free = shutil.disk_usage(folder).free // 2**20
    if free < MEGABYTES_NEEDED:
        raise DiskError(
            str(folder),
            found=f"{free} MB free",
            expected=f"{MEGABYTES_NEEDED} MB for FiftyOne's database",
            fix="make room, or set WORKBENCH_HOME to a folder on another disk",
        )
    usable, tried = find_mongods(folder)
    for mongod in usable:
        for _ in range(3):
            try:
                return _start(mongod, folder, port)
            except _PortTakenError:
                port = None
            except DatabaseError as error:
                tried.append(f"{mongod.path}: {error.found}")
                break
    fix = f"look into {folder / 'mongod.log'}; the database is only a view, so deleting {folder} mends damaged files"
    raise DatabaseError("MongoDB", found=f"none that works ({'; '.join(tried)})", fix=fix if usable else INSTALL)


class _PortTakenError(DatabaseError):
    """Between looking for a free port and listening on it somebody else was faster."""


def _start(mongod: Mongod, folder: Path, port: int | None) -> int:
    """Start one mongod in a session of its own, so that Ctrl-C does not reach it, and wait until it answers."""
    data = folder / f"data-{mongod.major}"  # one folder a major version: an older one cannot read a newer one's files
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = port if port and is_free(port) else free_port()
    log = folder / "mongod.log"
    if log.exists():
        log.replace(folder / "mongod.log.old")
    with log.open("wb") as out:
        server = subprocess.Popen(
            _command(mongod, data, port),
            env=mongod.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    _started.append(server)
    limit = time.monotonic() + START_SECONDS
    while server.poll() is None:
        if answers(port):
            return port
        if time.monotonic() > limit:
            server.kill()
            raise DatabaseError(str(log), found=f"no answer after {START_SECONDS:.0f} s")
        time.sleep(0.05)
    raise _start_error(log, server.returncode)


_started: list[subprocess.Popen[bytes]] = []  # kept, because a forgotten Popen warns although the server shall live on


def _command(mongod: Mongod, data: Path, port: int) -> list[str]:
    """Small for a view of thousands of images: by itself MongoDB takes half of the memory and 300 MB of journal."""
    options = {
        "--dbpath": str(data),
        "--port": str(port),
        "--bind_ip": "127.0.0.1",
        "--wiredTigerCacheSizeGB": "0.5",
        "--wiredTigerEngineConfigString": "log=(file_max=32MB,prealloc=false)",
        "--setParameter": "diagnosticDataCollectionEnabled=false",
    }
    flags = ["--quiet"] + ([] if sys.platform == "win32" else ["--nounixsocket"])
    return [str(mongod.path), *(word for pair in options.items() for word in pair), *flags]


def _start_error(log: Path, status: int) -> WorkbenchError:
    """What mongod's own log says about its end."""
    text = log.read_text(errors="replace")
    reason = _logged_reason(text) or exit_reason(status, text)
    if "Address already in use" in text:
        return _PortTakenError(str(log), found=reason)
    if "No space left on device" in text:
        return DiskError(str(log.parent), found="a full disk", fix="make room, or set WORKBENCH_HOME to another disk")
    if "DBPathInUse" in text:
        reason += " (is WORKBENCH_HOME shared with another machine or container? give each its own)"
    return DatabaseError(str(log), found=reason)


def _logged_reason(text: str) -> str:
    """The last error of a mongod log (JSON lines), or nothing."""
    for line in reversed(text.splitlines()):
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if entry.get("s") in ("E", "F"):
            attributes = entry.get("attr", {})
            detail = attributes.get("error") or attributes.get("message") or ""
            return f"{entry.get('msg', '')} {json.dumps(detail) if detail else ''}".strip()
    return ""


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        if sys.platform != "win32":  # as mongod does: connections of the server before it may still be closing
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- a server that runs already -------------------------------------------------------------------------------


def running_process(folder: Path) -> psutil.Process | None:
    """The living mongod of one of our data folders: its own lock file names it, its command line proves it."""
    for lock in folder.glob("data-*/mongod.lock"):
        try:
            process = psutil.Process(int(lock.read_text()))
            if not _is_dead(process) and str(lock.parent) in process.cmdline():
                return process
        except (ValueError, OSError, psutil.Error):
            continue  # empty after a clean end, or the number of a process that is gone
    return None


def running_port(folder: Path) -> int | None:
    """The port of the running server once it answers; None when there is none. Raises `DatabaseError` if it hangs."""
    limit = time.monotonic() + START_SECONDS
    while (process := running_process(folder)) is not None:
        words = process.cmdline()
        port = int(words[words.index("--port") + 1])
        if answers(port):
            return port
        if time.monotonic() > limit:
            raise DatabaseError(
                "MongoDB", found=f"process {process.pid} of {folder} does not answer", fix=f"end it: kill {process.pid}"
            )
        time.sleep(0.1)
    return None


def end(process: psutil.Process) -> None:
    """Let a server write everything and end; kill it if it does not within 20 seconds."""
    for signal, seconds in ((process.terminate, 20), (process.kill, 5)):
        try:
            signal()
        except psutil.NoSuchProcess:
            return
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if _is_dead(process):
                return
            time.sleep(0.02)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def answers(port: int) -> bool:
    """Whether a MongoDB answers on this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            pass
    except OSError:
        return False
    return not ping(f"mongodb://127.0.0.1:{port}", 2.0)


def ping(uri: str, seconds: float) -> str:
    """Nothing when the server answers, else why it does not."""
    import pymongo

    try:
        client: pymongo.MongoClient[Any] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=int(seconds * 1000))
        with client:
            client.admin.command("ping")
    except (pymongo.errors.PyMongoError, ValueError) as error:
        return str(error).split(", Timeout:")[0]
    return ""
