"""What is said about a name on the Hub before a download starts, against a real server on loopback that plays it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import PlaysHub, playing  # noqa: E402

WEIGHTS = b"x" * 4096
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"never wanted"}


class Hub(PlaysHub):
    """A Hub of a few repositories: one open, one gated, one too large for any disk, one that breaks off."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        owner = path.removeprefix("/api/models/").removeprefix("/").split("/")[0]
        if owner == "slow":
            self.send_response(200)
            self.end_headers()
            return self._trickle()
        if "/auth-check" in path:
            return self._refuse(403, "GatedRepo")
        if "/revision/nowhere" in path:
            return self._refuse(404, "RevisionNotFound")
        if owner not in ("open", "gated", "huge", "broken"):
            return self._refuse(404, "RepoNotFound")
        if "/tree/" in path:
            return self._json([{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in FILES.items()])
        if path.startswith("/api/models/"):
            return self._json(self._info(owner))
        name = path.rsplit("/", 1)[1]
        if owner == "broken" and name == "model.safetensors" and self.command == "GET":
            self.close_connection = True
            return self.connection.close()
        self._file(FILES[name])

    do_HEAD = do_GET

    def _info(self, owner: str) -> dict[str, object]:
        size = 9 * 10**15 if owner == "huge" else len(WEIGHTS)
        siblings = [{"rfilename": "config.json", "size": 2}, {"rfilename": "model.safetensors", "size": size}]
        return {
            "id": f"{owner}/model", "modelId": f"{owner}/model", "sha": "a" * 40, "siblings": siblings,
            "private": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "gated": "manual" if owner == "gated" else False, "cardData": {"license": "apache-2.0"},
        }  # fmt: skip

    def _trickle(self) -> None:
        """A byte now and then, so that no limit between two of them is ever reached."""
        with suppress(OSError):
            for _ in range(60):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.2)

    def _json(self, data: object) -> None:
        self.send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes) -> None:
        self.send(200, data, {"ETag": f'"{len(data)}"', "X-Repo-Commit": "a" * 40})

    def _refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with playing(Hub) as url:
        yield url


PARTS, SETTINGS = "resolve_parts(dict(enumerate(sys.argv[1:])))", "small_files(sys.argv[1], ['*.json'])"
CONVERT = "load_original(sys.argv[1])"


def resolve(names: list[str], hub: str, cache: Path, call: str = PARTS, timed: bool = False) -> str:
    """What `call` says, and its folders or its error, in a process that takes this server for the Hub."""
    code = textwrap.dedent(f"""
        import sys, time
        import workbench.hub
        from workbench.errors import WorkbenchError
        from workbench.model.original_in import load_original
        from workbench.model.sources import resolve_parts, small_files
        began = time.monotonic()
        try:
            print("folders", {call})
        except WorkbenchError as error:
            print(type(error).__name__, error)
        if {timed}:
            print("seconds", time.monotonic() - began)
    """)
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_size_and_licence_are_said_before_the_download_and_the_folder_is_kept(hub, tmp_path):
    said = resolve(["open/model"], hub, tmp_path)
    assert "open/model: 0.00 GB to download, licence apache-2.0" in said
    folder = next(tmp_path.rglob("model.safetensors"))
    assert folder.read_bytes() == WEIGHTS and str(folder.parent) in said
    before = len(Hub.asked)
    assert "folders" in resolve(["open/model"], hub, tmp_path) and len(Hub.asked) == before, "found without asking"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gated/model", "ModelError gated/model: found a licence gate that this login has not passed"),
        ("nobody/model", "ModelError nobody/model: found neither a folder nor a repository on the Hub"),
        ("open/model@nowhere", "ModelError open/model@nowhere: found no revision 'nowhere' of open/model"),
        ("huge/model", "expected 9000000.0 GB for the download"),
        ("broken/model", "found a download that broke off"),
    ],
)
def test_what_stands_in_the_way_is_one_line(name, expected, hub, tmp_path):
    assert expected in resolve([name], hub, tmp_path)


def test_a_connection_that_leads_nowhere_is_given_up_in_seconds(hub, tmp_path):
    said = resolve(["slow/model"], hub, tmp_path, f"[setattr(workbench.hub, 'WAIT', 1.0), {PARTS}]", timed=True)
    assert "ModelError slow/model: found no folder of that name, and no connection to the Hub (TimeoutError)" in said
    assert "HF_HUB_OFFLINE=1" in said and float(said.split()[-1]) < 4


def test_settings_are_told_of_in_the_same_words_and_come_from_the_cache_without_a_connection(hub, tmp_path):
    nowhere = "http://127.0.0.1:9"
    said = resolve(["open/model"], nowhere, tmp_path, SETTINGS)
    assert "ModelError open/model: found no folder of that name, and no connection to the Hub (" in said
    assert "a licence gate" in resolve(["gated/model"], hub, tmp_path, SETTINGS)
    folder = resolve(["open/model"], hub, tmp_path, SETTINGS)
    assert folder.startswith("folders ") and not list(tmp_path.rglob("model.safetensors")), "settings alone"
    assert resolve(["open/model"], nowhere, tmp_path, SETTINGS) == folder
    assert "no connection" in resolve(["open/model"], nowhere, tmp_path), "there are no weights yet"


def test_nothing_is_downloaded_before_every_part_was_looked_at(hub, tmp_path):
    said = resolve(["open/model", "gated/model"], hub, tmp_path)
    assert "a licence gate" in said and not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("inside", [True, False], ids=["its own file", "the tower named"])
def test_of_a_tower_whose_weights_are_in_the_checkpoint_only_settings_are_downloaded(inside, hub, tmp_path):
    told = {"model_type": "llava_llama", "mm_vision_tower": "open/model", "unfreeze_mm_vision_tower": inside}
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text(json.dumps(told))
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "llava" / "model.safetensors")
    said = resolve([str(tmp_path / "llava")], hub, tmp_path / "cache", CONVERT)
    assert "a known model type" in said, "the tower's config.json was read"
    found = {path.name for path in (tmp_path / "cache" / "hub").rglob("*.*") if path.is_symlink()}
    assert found == {"config.json"} | (set() if inside else {"model.safetensors"})
    told["mm_vision_tower"] = "nobody/model"
    (tmp_path / "llava" / "config.json").write_text(json.dumps(told))
    said = resolve([str(tmp_path / "llava")], hub, tmp_path / "cache", CONVERT)
    assert "the vision tower 'nobody/model' of " in said
    assert "llava: found neither a folder nor a repository on the Hub; say where" in said
