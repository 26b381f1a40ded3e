from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.curation.plugin_link import ENTRY, PLUGIN, link_plugin
from workbench.errors import DataError


def test_the_plugin_stands_beside_the_persons_own(tmp_path: Path) -> None:
    """As FiftyOne itself lists them, in a process that reads the folder from the environment."""
    own = tmp_path / "plugins" / "own"
    own.mkdir(parents=True)
    (own / "fiftyone.yml").write_text('name: "@ada/own"\n')
    link = link_plugin(tmp_path / "plugins")
    assert link_plugin(tmp_path / "plugins") == link and link.resolve() == PLUGIN
    code = "import fiftyone.plugins as p; print(sorted(one.name for one in p.list_plugins()))"
    from workbench.curation.database import ensure_database

    ensure_database()
    import os

    settings = {**os.environ, "FIFTYONE_PLUGINS_DIR": str(tmp_path / "plugins")}
    told = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['@ada/own', '@llava-workbench/review']"


def test_a_link_to_another_installation_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "fiftyone.yml").write_bytes((PLUGIN / "fiftyone.yml").read_bytes())
    (tmp_path / ENTRY).symlink_to(other)
    assert link_plugin(tmp_path).resolve() == PLUGIN
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_what_is_not_ours_is_left_alone_and_told(tmp_path: Path) -> None:
    entry = tmp_path / ENTRY
    entry.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="a link to .*gone, which is gone; move it away"):
        link_plugin(tmp_path)
    assert entry.is_symlink()
    entry.unlink()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "fiftyone.yml").write_text("name: [broken")
    entry.symlink_to(foreign)
    with pytest.raises(DataError, match="something else of this name"):
        link_plugin(tmp_path)
    entry.unlink()
    entry.mkdir()
    with pytest.raises(DataError, match="something else of this name"):
        link_plugin(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="no link can be made"):
        link_plugin(blocked)
