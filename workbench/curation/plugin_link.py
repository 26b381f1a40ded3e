"""How FiftyOne finds our plugin: a link in the folder of plugins that a person has already.

Knows: that folder (`FIFTYONE_PLUGINS_DIR`, else FiftyOne's default), and which entries in it are ours.
Does not know: what the plugin does (`workbench/plugin`).

FiftyOne looks into one folder of plugins. Naming one of ours instead would hide the person's own, so a link to the
installed package is put beside them; FiftyOne follows links.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from workbench.errors import DataError
from workbench.resources import expanded

ENTRY = "llava-workbench"
"""The name of the link."""
PLUGIN = Path(__file__).resolve().parents[1] / "plugin"


def link_plugin(folder: str | Path) -> Path:
    """Make the installed plugin one of those in `folder`; returns the link. A link to another installation is replaced.

    Raises `DataError` where something else has its name (it stays as it is), or no link can be made.
    """
    link = expanded(folder) / ENTRY
    fix = f"move it away, and the panel Conversations is found again: mv {link} {link}-old"
    if link.is_symlink():
        if not link.exists():
            raise DataError(str(link), found=f"a link to {os.readlink(link)}, which is gone", fix=fix)
        if link.resolve() == PLUGIN:
            return link
    if (link.exists() and not link.is_symlink()) or (link.is_symlink() and _name(link) != _name(PLUGIN)):
        raise DataError(str(link), found="something else of this name", expected="a link to our plugin", fix=fix)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        made = link.with_name(f".{ENTRY}-{os.getpid()}")
        made.unlink(missing_ok=True)
        made.symlink_to(PLUGIN, target_is_directory=True)
        made.replace(link)
    except OSError as problem:
        fix = f"set FIFTYONE_PLUGINS_DIR to a folder that can be written, or copy {PLUGIN} there"
        raise DataError(str(link), found=f"no link can be made ({problem.strerror})", fix=fix) from problem
    return link


def _name(folder: Path) -> str | None:
    """What a plugin's folder calls itself."""
    try:
        return str(yaml.safe_load((folder / "fiftyone.yml").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
