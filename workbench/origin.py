"""Which code made something: versions of the packages that matter, the checkout's commit, the kind of machine.

Knows: what is needed to make it again, and nothing that names the machine or its user.
Does not know: who keeps it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

from workbench import resources

PACKAGES = (
    "llava-workbench", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "polars", "pillow",
    "fiftyone",
)  # fmt: skip


def origin() -> dict[str, Any]:
    """`versions`, `commit` and `platform`, as a run folder keeps them."""
    system = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    return {"versions": versions(), "commit": commit(), "platform": system}


def versions() -> dict[str, str]:
    """Version of Python and of each of `PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether it has changes; None for an installed wheel."""
    checkout = resources.PACKAGE.parent
    if not (checkout / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
