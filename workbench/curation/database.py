"""The database behind FiftyOne: the server a person names, or our own, shared by every process that uses it.

Knows: what FiftyOne reads from the environment when it is imported, and which processes use our server: the last one
out stops it, by its process id.
Does not know: how a mongod is found and started (`server.py`), or datasets. All the database holds is a view that
`table.py` can rebuild, so its folder may be deleted whenever nothing runs.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import ModuleType

import psutil

from workbench.curation import server
from workbench.errors import DatabaseError
from workbench.resources import file_lock, state_folder, write_atomic

URI = "FIFTYONE_DATABASE_URI"
OURS = "WORKBENCH_DATABASE_URI"
"""Set beside `URI` when the server is ours, so that a child process does not take it for a person's choice."""
LOCK_SECONDS = 90.0
"""Longer than a start may take."""
NOTE = "FiftyOne's view of your datasets. It is rebuilt from the dataset folders, so this folder may be deleted.\n"


def database_folder() -> Path:
    return state_folder() / "database"


def open_fiftyone() -> ModuleType:
    """The `fiftyone` package, imported once its database is there. Raises `DatabaseError` or `DiskError`."""
    ensure_database()
    with _forgiving_metadata():
        import fiftyone

    return fiftyone


@contextmanager
def _forgiving_metadata() -> Iterator[None]:
    """What a package does not say of itself is None, as the standard library has it.

    FiftyOne's library eta asks for fields that its metadata lacks, and the package importlib_metadata, which answers
    for the standard library once anything (litellm, opentelemetry) imported it, raises KeyError since 8.0.
    """
    read = metadata.metadata

    def forgiving(name: str) -> Message:
        found, made = read(name), Message()
        for key in found:
            made[key] = found[key]
        return made

    metadata.metadata = forgiving  # type: ignore[assignment]
    try:
        yield
    finally:
        metadata.metadata = read


def ensure_database() -> str:
    """Find or start a MongoDB, point FiftyOne at it, and return its URI. To be called before `import fiftyone`.

    A person's own `FIFTYONE_DATABASE_URI` comes first, then a mongod on PATH, then the bundled one. Cheap when the
    server runs already. Raises `DatabaseError` (nothing works, with what was tried) or `DiskError`.
    """
    named, ours = os.environ.get(URI), os.environ.get(OURS)
    _settings()
    if named and named != ours:
        _check_named(named)
        return named
    port = int(ours.rsplit(":", 1)[1]) if ours else None
    if ours and port and "fiftyone" in sys.modules and server.answers(port):
        return ours  # FiftyOne is connected, and stays connected, to this one
    folder = database_folder()
    write_atomic(folder / "README.txt", NOTE)
    with file_lock(folder / "lock", wait=LOCK_SECONDS, error=DatabaseError):
        # A server that died is started again on its port: FiftyOne's connection then heals by itself.
        port = server.running_port(folder) or server.start(folder, port)
        _register(folder)
    uri = f"mongodb://127.0.0.1:{port}"
    os.environ[URI] = os.environ[OURS] = uri
    os.environ["FIFTYONE_DATABASE_VALIDATION"] = "false"  # the bundled 6.0 works; FiftyOne would tell of its age
    return uri


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a server that fails midway (killed, or its disk is full) into one `DatabaseError`."""
    from pymongo.errors import PyMongoError

    try:
        yield
    except PyMongoError as error:
        log = database_folder() / "mongod.log"
        fix = f"look into {log} (a full disk?) and try again: the dataset folder is untouched"
        raise DatabaseError("MongoDB", found=str(error).split(", Timeout:")[0], fix=fix) from error


def stop_database(folder: Path | None = None) -> None:
    """Stop using our server; it ends cleanly when no other living process uses it. Happens by itself at exit."""
    folder = folder or database_folder()
    with file_lock(folder / "lock", wait=LOCK_SECONDS, error=DatabaseError):
        _user_file(folder).unlink(missing_ok=True)
        process = server.running_process(folder)
        if process is not None and not _other_users(folder):
            server.end(process)


def _settings() -> None:
    """What FiftyOne reads when it is imported; whatever a person has set stays."""
    made = state_folder() / "fiftyone"
    defaults = {
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "FIFTYONE_DEFAULT_APP_ADDRESS": "127.0.0.1",
        "FIFTYONE_DEFAULT_DATASET_DIR": str(made / "datasets"),
        "FIFTYONE_DATASET_ZOO_DIR": str(made / "dataset_zoo"),
        "FIFTYONE_MODEL_ZOO_DIR": str(made / "model_zoo"),
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    if "ipykernel" in sys.modules and os.environ.get("FIFTYONE_CONTEXT") == "NONE":
        del os.environ["FIFTYONE_CONTEXT"]  # left by the process that started Jupyter; we are in a notebook


def _check_named(uri: str) -> None:
    why = server.ping(uri, 5.0)
    if why:
        shown = re.sub(r"//[^/]*@", "//...@", uri)  # a password does not belong into a message
        raise DatabaseError(
            URI,
            found=f"{shown}, which does not answer ({why})",
            fix=f"start that server, or unset {URI} and a server of our own is used",
        )


def _user_file(folder: Path) -> Path:
    return folder / "users" / str(os.getpid())


def _register(folder: Path) -> None:
    """Write down that this process uses the server, and take leave at its end."""
    mine = _user_file(folder)
    if not mine.exists():
        write_atomic(mine, str(psutil.Process().create_time()))
        atexit.register(_leave, os.getpid(), folder, server.running_process(folder))


def _leave(pid: int, folder: Path, process: psutil.Process | None) -> None:
    """At the end of the process that registered; a forked child inherits the hook but is not a user."""
    if pid != os.getpid():
        return
    if folder.exists():
        stop_database(folder)
    elif process is not None:  # somebody deleted the state folder: such a server is of no use to anybody
        server.end(process)


def _other_users(folder: Path) -> list[int]:
    """Living processes that registered; a killed one's file goes (its number may belong to another by now)."""
    living = []
    for path in (folder / "users").iterdir():
        try:
            if psutil.Process(int(path.name)).create_time() == float(path.read_text()):
                living.append(int(path.name))
                continue
        except (OSError, ValueError, psutil.Error):
            pass
        path.unlink(missing_ok=True)
    return living
