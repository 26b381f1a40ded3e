"""The Hugging Face Hub: what it says of a repository before anything is downloaded, and the download.

Knows: size and licence, a gate, a missing network, a download that breaks off, in words for a person.
Does not know: which files are wanted, or what they mean (`data/hf_rows.py`, `model/sources.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from workbench.errors import WorkbenchError
from workbench.resources import DISK_ERRORS, disk_errors

Error = type[WorkbenchError]
WAIT = 10.0
"""Seconds in which the Hub has to say what a repository is."""


def describe(name: str, error: Error, *, dataset: bool = False) -> Any:
    """What the Hub says about `owner/name` or `owner/name@revision`; one quick question, no retries, `WAIT` seconds.

    Raises `error` where it is not there, behind a gate that this login has not passed, or where there is no connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api, (repository, revision) = HfApi(), repository_of(name)
    kind = "dataset" if dataset else "model"

    def ask() -> Any:
        info = api.repo_info(repository, revision=revision, repo_type=kind, files_metadata=True, timeout=WAIT)
        if info.gated:
            api.auth_check(repository, repo_type=kind)
        return info

    try:
        return _in_time(ask)
    except GatedRepoError as problem:
        page = f"https://huggingface.co/{'datasets/' if dataset else ''}{repository}"
        found = f"a {'' if dataset else 'licence '}gate that this login has not passed"
        fix = f"accept the {'terms' if dataset else 'licence'} at {page} and log in with `hf auth login`"
        raise error(name, found=found, fix=fix) from problem
    except RepositoryNotFoundError as problem:
        found = f"neither a folder nor a {'dataset' if dataset else 'repository'} on the Hub"
        raise error(name, found=found, fix="check the name") from problem
    except RevisionNotFoundError as problem:
        raise error(name, found=f"no revision {revision!r} of {repository}", fix="check what follows @") from problem
    except HfHubHTTPError as problem:
        raise error(name, found=f"the Hub's answer {problem.response.status_code}", fix="try again later") from problem
    except Exception as problem:  # the many shapes of "no network": offline mode, DNS, refused, timed out
        here = "no file or folder" if dataset else "no folder"
        found = f"{here} of that name, and no connection to the Hub ({type(problem).__name__})"
        fix = "check the path, or the connection"
        if not dataset:
            fix = "check the path; or connect once, and it is kept (HF_HUB_OFFLINE=1 then asks no more); or copy its "
            fix += "folder here and name that"
        raise error(name, found=found, fix=fix) from problem


def _in_time(ask: Callable[[], Any]) -> Any:
    """What `ask` gives. Raises what it raises, and `TimeoutError` after `WAIT` seconds.

    In a thread that may be left behind: a limit of the client counts neither how long a name server is silent nor
    that every address is tried for as long.
    """
    told: Queue[tuple[Any, BaseException | None]] = Queue()

    def run() -> None:
        try:
            told.put((ask(), None))
        except BaseException as problem:
            told.put((None, problem))

    Thread(target=run, daemon=True).start()
    try:
        info, problem = told.get(timeout=WAIT)
    except Empty:
        raise TimeoutError(f"no answer within {WAIT:g} s") from None
    if problem is not None:
        raise problem
    return info


def size_and_licence(info: Any, files: Iterable[Any]) -> tuple[int, str | None]:
    """Bytes of these of a repository's files, and its licence where it states one."""
    licence = info.card_data.get("license") if info.card_data else None
    return sum(file.size or 0 for file in files), licence


def fetch(name: str, error: Error, **wanted: Any) -> Path:
    """Download what is `wanted` (as `snapshot_download` takes it) of `name`; returns the folder it is in.

    Raises `error` for a download that breaks off and `DiskError` for a full disk; what came is kept.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    repository, revision = repository_of(name)
    with disk_errors(HF_HUB_CACHE):
        try:
            return Path(snapshot_download(repository, **{"revision": revision, **wanted}))
        except Exception as problem:  # the many shapes of a connection that breaks
            if isinstance(problem, OSError) and problem.errno in DISK_ERRORS:
                raise
            found, fix = f"a download that broke off ({type(problem).__name__})", "run it again: what came is kept"
            raise error(name, found=found, fix=fix) from problem


def kept(name: str, patterns: Sequence[str]) -> Path | None:
    """The folder of an earlier download of `name`, if it has all files of these patterns; found without any network."""
    from huggingface_hub import snapshot_download

    repository, revision = repository_of(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*patterns], local_files_only=True))
    except Exception:  # not there or not complete, in many shapes
        return None


def repository_of(name: str) -> tuple[str, str | None]:
    """`owner/name` and the revision after an `@`, if one is named."""
    repository, _, revision = name.partition("@")
    return repository, revision or None
