"""Where things lie, and how they are written so that a crash leaves no half of them.

Knows: the shipped recipes, notebooks, datasets and tiny weights in a checkout and in an installed wheel; the one home
of state; atomic files and folders; one writer at a time.
Does not know: what any of these files mean.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

from workbench.errors import DataError, DiskError, RunError, WorkbenchError, kind_of

PACKAGE = Path(__file__).resolve().parent
SHARE = PACKAGE / "_share"
"""Exists in an installed wheel only; a checkout has the same folders beside the package."""

DISK_ERRORS = {
    errno.ENOSPC: ("a full disk", "free space"),
    errno.EFBIG: ("a file larger than may be written here", "a higher limit (ulimit -f), or another file system"),
    errno.EDQUOT: ("a used-up disk quota", "free space"),
    errno.EROFS: ("a read-only file system", "a folder that can be written"),
    errno.EACCES: ("no permission to write", "a folder that can be written"),
    errno.EPERM: ("no permission to write", "a folder that can be written"),
    errno.ENAMETOOLONG: ("a name that is too long", "a shorter one"),
    errno.EEXIST: ("something of that name", "a new or empty folder"),
    errno.ENOTDIR: ("a file where a folder has to be", "a folder"),
    errno.EISDIR: ("a folder", "a file"),
}


def as_path(value: str | Path, what: str) -> Path:
    """A path. Raises `DataError` for a value that is none; `what` it is the path of."""
    if not isinstance(value, (str, Path)):
        raise DataError(what, found=kind_of(value), expected="a path")
    return Path(value)


def expanded(path: str | Path, error: type[WorkbenchError] = DataError) -> Path:
    """A path as a person writes it, `~` and `~somebody` as their home folders. Raises `error` where it can be none."""
    if "\0" in str(path):
        raise error(repr(str(path)), found="a NUL character", expected="a path, which cannot have one")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        found = f"no home folder of {Path(path).parts[0][1:]} on this machine"
        raise error(str(path), found=found, fix="write the whole path, or ./~ for a name that begins so") from None


def import_path() -> str:
    """What `PYTHONPATH` has to say so that a process of its own imports this package from wherever it was here."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if str(PACKAGE.parent) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *paths):
        paths.append(str(PACKAGE.parent))
    return os.pathsep.join(paths)


def recipes_folder() -> Path:
    """The shipped recipes, one YAML file per thing to run."""
    return _shipped("recipes")


def notebooks_folder() -> Path:
    """The shipped notebooks."""
    return _shipped("notebooks")


def datasets_folder() -> Path:
    """The shipped datasets and cards. Read-only: made or downloaded data goes to `state_folder()`."""
    return _shipped("datasets")


def tiny_folder() -> Path:
    """The tiny LLaVA's starting parts: `vision/` (a CLIP with its text head) and `language/`."""
    return PACKAGE / "model" / "tiny"


def state_folder() -> Path:
    """The one home of cache, database and made data: `$WORKBENCH_HOME`, else the platform's cache folder. Created."""
    chosen = os.environ.get("WORKBENCH_HOME")
    path = expanded(chosen) if chosen else Path(platformdirs.user_cache_dir("workbench", appauthor=False))
    return make_folder(path).resolve()


def _shipped(name: str) -> Path:
    return (SHARE if SHARE.is_dir() else PACKAGE.parent) / name


# --- writing --------------------------------------------------------------------------------------------------


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk, or a file or folder in the way, into one `DiskError`.

    It names what the system names, else `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        found, expected = DISK_ERRORS[error.errno]
        named = str(error.filename2 or error.filename or path)
        where = str(path) if ".tmp" in named else named  # a temporary name of ours means nothing to a person
        room = "make room (`workbench clean` lists sizes) or " if expected == "free space" else ""
        fix = f"what was written before is intact: {room}choose another folder"
        raise DiskError(where, found=found, expected=expected, fix=fix) from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder and those above it, made where they are not there. Raises `DiskError`, also where none can be made."""
    path = Path(path)
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below `/proc`, say, or a folder that was removed
            fix = "choose another folder"
            raise DiskError(str(path), found="a place where no folder can be made", fix=fix) from error
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `DiskError` now where a file could not be written later, after hours of work."""
    path = Path(path)
    with disk_errors(path):
        folder = path if path.is_dir() else make_folder(path.parent)
    if not os.access(folder, os.W_OK):
        raise DiskError(str(folder), found="no permission to write", fix="choose another folder")


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename. Text is UTF-8. Raises `DiskError`."""
    path = Path(path)
    raw = data.encode() if isinstance(data, str) else data
    with disk_errors(path):
        make_folder(path.parent)
        temporary = _temporary(path)
        try:
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Build a folder under a temporary name; it gets its name when the block ends well, else it is removed.

    With `replace` an existing folder is put aside first; a crash between the two renames is mended by
    `recover_folder`. Without it an existing folder that is not empty raises `FileExistsError`. Raises `DiskError`.
    """
    path = Path(path)
    with disk_errors(path):
        recover_folder(path)
        in_the_way = path.exists() and any(path.iterdir())
    if in_the_way and not replace:
        raise FileExistsError(errno.EEXIST, "the folder is not empty", str(path))
    temporary = _temporary(path)
    with disk_errors(path):
        make_folder(path.parent)
        temporary.mkdir()
        try:
            yield temporary
            for inside in temporary.rglob("*"):
                _share(inside, temporary)
                _fsync(inside)
            _fsync(temporary)
            if path.exists():
                os.replace(path, _aside(path))
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            recover_folder(path)
            raise
        _fsync(path.parent)
        shutil.rmtree(_aside(path), ignore_errors=True)


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Finish or undo a replacement by `atomic_folder` that was interrupted: the folder, old or new, is whole after."""
    path = Path(path)
    aside = _aside(path)
    if not aside.exists():
        return
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(aside, path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _share(path: Path, folder: Path) -> None:
    """Let whoever may read files that this process makes read this one too: safetensors writes for the owner alone."""
    if path.is_file() and not path.is_symlink():
        mode, usual = path.stat().st_mode, folder.stat().st_mode & 0o666  # what the umask left of a folder's 777
        if mode | usual != mode:
            path.chmod(mode | usual)


def _fsync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable; Windows cannot do so for folders and need not."""
    if path.is_symlink() or (os.name == "nt" and path.is_dir()):
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    path = Path(path)
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if path.exists() or path.is_symlink() else 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # removed meanwhile by whoever owns it
                continue
    return total


def state_sizes(names: Iterable[str] = ()) -> dict[str, int]:
    """Bytes below entries of `state_folder()`: all, or those named. Raises `WorkbenchError` for an unknown name."""
    return {entry.name: size_of(entry) for entry in _state_entries(names)}


def clean_state(names: Iterable[str]) -> None:
    """Remove entries of `state_folder()` by name. Raises `DiskError`, and `WorkbenchError` for an unknown name."""
    names = list(names)
    for entry in _state_entries(names) if names else ():
        with disk_errors(entry):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _state_entries(names: Iterable[str]) -> list[Path]:
    folder = state_folder()
    there = sorted(os.listdir(folder))
    names = list(names) or there
    for name in names:
        if name not in there:
            expected = ", ".join(there) or "nothing: it is empty"
            raise WorkbenchError(name, found=f"no such entry in {folder}", expected=expected)
    return [folder / name for name in names]


# --- one writer at a time -------------------------------------------------------------------------------------


@contextmanager
def file_lock(
    path: str | os.PathLike[str], *, wait: float = 0.0, error: type[WorkbenchError] = RunError
) -> Iterator[None]:
    """Hold the lock file `path`, trying for `wait` seconds; `error` names the process that holds it.

    The operating system frees the lock when its holder dies, however it dies; where a surviving child of a dead
    holder keeps it, the recorded process number shows that and the lock is taken over.
    """
    lock = FileLock(path, error)
    lock.acquire(wait)
    try:
        yield
    finally:
        lock.release()


class FileLock:
    """The lock behind `file_lock`, for holders that outlive one block. It excludes threads of one process as well."""

    def __init__(self, path: str | os.PathLike[str], error: type[WorkbenchError] = RunError) -> None:
        self.path = Path(path)
        self.error = error
        self._file: IO[str] | None = None

    def acquire(self, wait: float = 0.0) -> None:
        """Take the lock within `wait` seconds, else raise `error`."""
        deadline = time.monotonic() + wait
        while not self._try():
            if time.monotonic() >= deadline:
                raise self.error(
                    str(self.path.parent),
                    found=f"another writer (process {self.holder() or 'unknown'})",
                    expected="one writer at a time",
                    fix="wait until it has ended, or stop it",
                )
            time.sleep(0.05)

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    @property
    def mine(self) -> bool:
        """Whether this very object holds it."""
        return self._file is not None

    def holder(self) -> int | None:
        """The process number written in the lock file, if any."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return None

    def held(self) -> bool:
        """Whether a living process holds the lock now; looking does not get in its way."""
        holder = self.holder()
        return holder is not None and _alive(holder)

    def _try(self) -> bool:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+", encoding="ascii")  # noqa: SIM115 - kept open for as long as the lock is held
        if not _lock_handle(file):
            file.close()
            holder = self.holder()
            if holder is not None and not _alive(holder):
                self.path.unlink(missing_ok=True)  # its children keep the old file's lock; the next try makes a new one
            return False
        if not self.path.exists() or not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
            file.close()  # taken over between opening and locking
            return False
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return True


def _lock_handle(file: IO[str]) -> bool:
    """Lock an open file without waiting; True when it is ours."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**30)  # a byte nobody writes: Windows forbids reading a locked one
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it there; the lock itself is freed with its holder
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
