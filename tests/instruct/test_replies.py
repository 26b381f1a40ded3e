"""The store of replies: what was committed stays, whatever happens to the process or to the file."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.errors import DataError
from workbench.instruct.replies import Reply, ReplyStore


def reply(key: str, text: str = "text") -> Reply:
    return Reply(key, text, "stop", "model", "endpoint", 1, 2, 0.1, "{}")


def test_what_was_put_is_found_under_its_key(tmp_path: Path) -> None:
    made = [reply(f"k{number}", f"text {number} \0 \U0001f600") for number in range(1200)]
    with ReplyStore(tmp_path / "r.sqlite") as store:
        store.put_many(made)
        assert store.get("k7") == made[7] and store.get("other") is None and len(store) == 1200
    with ReplyStore(tmp_path / "r.sqlite") as store:
        assert store.get_many([one.key for one in made] + ["other"]) == {one.key: one for one in made}
        assert sorted(store, key=lambda one: one.key) == sorted(made, key=lambda one: one.key)


WRITER = """
import sys
from workbench.instruct.replies import Reply, ReplyStore
with ReplyStore(sys.argv[1]) as store:
    for group in range(10_000):
        name = f"{sys.argv[2]} {group}"
        store.put_many([Reply(f"{name} {n}", "t" * 2000, "stop", "m", "e", 1, 2, 0.1, "{}") for n in range(5)])
        print(name, flush=True)
"""


def test_two_processes_that_are_killed_while_writing_leave_all_they_committed_and_no_half_group(tmp_path: Path) -> None:
    path, dice = tmp_path / "r.sqlite", random.Random(2)
    told: list[str] = []
    for trial in range(4):
        both = [
            subprocess.Popen([sys.executable, "-c", WRITER, path, f"{trial}{name}"], stdout=subprocess.PIPE, text=True)
            for name in "ab"
        ]
        for process in both:  # each has written something
            told.append(process.stdout.readline().strip())  # type: ignore[union-attr]
        time.sleep(dice.random() * 0.1)
        for process in both:
            process.send_signal(signal.SIGKILL)
        for process in both:
            told += [line for line in process.communicate()[0].splitlines() if line]
    with ReplyStore(path) as store:
        keys = {one.key for one in store}
    groups = {key.rsplit(" ", 1)[0] for key in keys}
    assert len(keys) == 5 * len(groups) and len(told) >= 8
    assert {name for name in told if name.rsplit(" ", 1)[-1].isdigit()} - groups == set()


def test_two_connections_may_use_one_file_and_the_first_reply_stays(tmp_path: Path) -> None:
    with ReplyStore(tmp_path / "r.sqlite") as one, ReplyStore(tmp_path / "r.sqlite") as two:
        first = reply("k", "first")
        one.put_many([first])
        two.put_many([reply("k", "second"), reply("l")])
        assert one.get("k") == first and one.get("l") is not None and len(two) == 2


def test_nothing_of_a_group_is_kept_when_one_of_it_cannot_be(tmp_path: Path) -> None:
    with ReplyStore(tmp_path / "r.sqlite") as store:
        with pytest.raises(DataError):
            store.put_many([reply("a"), reply("b", text=None)])  # type: ignore[arg-type]
        assert len(store) == 0
        store.put_many([reply("a")])
        assert len(store) == 1


def test_a_file_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    notes, other = tmp_path / "notes", tmp_path / "other"
    notes.write_bytes(b"holiday notes, not a database" * 50)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE accounts (name)")
    for path, words in ((notes, "an SQLite file of replies; move it away"), (other, "tables accounts")):
        before = path.read_bytes()
        with pytest.raises(DataError, match=words):
            ReplyStore(path)
        assert path.read_bytes() == before


def test_other_columns_are_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.execute("CREATE TABLE replies (key PRIMARY KEY, answer)")
    with pytest.raises(DataError, match="columns key, answer; expected key, text"):
        ReplyStore(tmp_path / "r.sqlite")


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ReplyStore(path) as store:
        store.put_many([reply(f"k{number}", "t" * 400) for number in range(2000)])
    data = bytearray(path.read_bytes())
    data[4096 * 20 : 4096 * 60] = bytes(4096 * 40)
    path.write_bytes(data)
    with ReplyStore(path) as store, pytest.raises(DataError, match="move it away"):
        store.get_many([f"k{number}" for number in range(2000)])


def test_a_folder_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unable to open"):
        ReplyStore(tmp_path / "none" / "r.sqlite")
