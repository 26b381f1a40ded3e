"""Opening the App: which view it shows, and where it is said to be reached."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from workbench.curation import app
from workbench.curation.refresh import view_of
from workbench.curation.review import give_verdict
from workbench.data.dataset import Dataset
from workbench.errors import DataError


def test_a_view_is_brought_up_to_date_and_keeps_what_it_has(fiftyone: ModuleType, dataset: Dataset) -> None:
    view = view_of(dataset)
    view.set_values("own_field", list(range(len(view))))
    view.tag_labels(["funny"], "conversations")
    first = view.first()
    first.tags.append("mine")
    first.save()
    names = dataset.conversation_rows["id"]
    labels = view.values("conversations.classifications.id", unwind=True)
    dataset.edit({"table": "conversations", "id": names[0], "set": {"status": "removed", "reason": "elsewhere"}})
    dataset.edit({"table": "images", "id": first.workbench_id, "set": {"split": "test"}})
    again = view_of(dataset)
    assert again.name == view.name and again.values("own_field") == list(range(8))
    assert again.values("conversations.classifications.id", unwind=True) == labels
    said = again.values(
        ["conversations.classifications.conversation_id", "conversations.classifications.reason"], unwind=True
    )
    assert dict(zip(*said, strict=True))[names[0]] == "elsewhere"
    assert set(again.count_label_tags("conversations")) == {"funny"}
    assert again.first().tags[0] == "test" and "mine" in again.first().tags


def test_another_folder_of_the_same_name_has_a_view_of_its_own(
    fiftyone: ModuleType, make_scenes: Any, tmp_path: Path
) -> None:
    one, other = make_scenes(tmp_path / "a", 4), make_scenes(tmp_path / "b", 5)
    names = {view_of(one).name, view_of(other).name}
    assert len(names) == 2 and {view_of(one).name, view_of(other).name} == names
    assert (len(view_of(one)), len(view_of(other))) == (4, 5)
    give_verdict(view_of(other), other.conversation_rows["id"][0], "accept", who="ada")
    assert all("verdict" not in found.metadata for found in one.conversations())


def test_images_that_came_make_a_new_view(fiftyone: ModuleType, dataset: Dataset) -> None:
    assert len(view_of(dataset)) == 8
    dataset.write_images(dataset.images.head(6))
    assert len(view_of(dataset)) == 6


def test_the_way_to_the_app_is_found_or_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "SSH_CONNECTION", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    session = SimpleNamespace()
    told = app._told(session, 5151, False, True, None)
    assert told == "the App is at http://127.0.0.1:5151/"
    assert "ssh -N -L 5151:127.0.0.1:5151 " in app._told(session, 5151, False, False, None)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert "pip install jupyter-server-proxy" in app._told(session, 5151, True, True, None)
    monkeypatch.setattr(app, "find_spec", lambda name: object())  # as if jupyter-server-proxy were installed
    assert app._proxy(True) == "/user/ada/proxy/{port}/" and app._proxy(False) is None
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    assert app._proxy(True) is None
    (tmp_path / "jpserver-1.json").write_text("not JSON")
    (tmp_path / "jpserver-2.json").write_text(json.dumps({"pid": 22, "base_url": "/lab/"}))
    monkeypatch.setenv("JPY_PARENT_PID", "22")
    assert app._proxy(True) == "/lab/proxy/{port}/"


def test_a_taken_port_is_told_and_the_usual_one_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port}: found a program that uses it"):
            app._port(port, 5151)
        assert app._port(None, port) != port
    assert app._port(None, port) == port


def test_a_port_that_another_program_takes_meanwhile_is_passed_over_and_said(
    fiftyone: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fiftyone.core.session.session import _server_services

    look, began = app._port, time.monotonic()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        seen = iter([port])  # what the first look saw as free
        monkeypatch.setattr(app, "_port", lambda wanted, usual: next(seen, None) or look(wanted, usual))
        found = app._started(None, port)
        try:
            assert found != port and f"port {port} was taken by another program meanwhile" in capsys.readouterr().err
            socket.create_connection(("127.0.0.1", found), timeout=10).close()
            begun = _server_services[found].child.pid
            said = {Path(f"/proc/{begun}/fd/{number}").resolve().name for number in (1, 2)}
            assert said == {app.LOG}, "whoever reads our output does not wait for the server's"
            assert time.monotonic() - began < 55, "not found out by the minute that a server has to start"
        finally:
            _server_services.pop(found).stop()
        monkeypatch.setattr(app, "_port", lambda wanted, usual: port)
        with pytest.raises(DataError, match=f"port {port}: found a program that uses it; choose another"):
            app._started(port, 5151)


def test_an_entry_that_is_not_ours_costs_the_panel_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llava-workbench").mkdir()
    assert not app._link(str(tmp_path))
    assert "the panel Conversations is not there: " in capsys.readouterr().err
    assert app._link(str(tmp_path / "other"))


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "open", str(tmp_path / "none")],
        capture_output=True, text=True, env=dict(os.environ), timeout=120,
    )  # fmt: skip
    assert told.returncode == 1 and told.stderr.startswith("error: ") and told.stderr.count("\n") == 1
