"""Files of JSON lines: what a killed writer leaves, going back, and reading on while another process writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import DiskError
from workbench.json_lines import JsonLines, Tail

FULL = Path("/dev/full")
"""A file that every write finds full."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def test_a_torn_last_line_costs_that_line_only(path: Path) -> None:
    lines = JsonLines(path)
    lines.append({"step": 1})
    lines.append({"step": 2, "text": "caf\u00e9 \u2028 no end of a line"})
    lines.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = JsonLines(path)
        again.append({"step": 3})
        again.close()
        assert again.rows()[-1] == {"step": 3}
        assert [row["step"] for row in again.rows()] in ([3], [1, 3], [1, 2, 3])


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
def test_a_line_that_found_no_room_is_told_once(path: Path) -> None:
    """Closing tried it again, and stopped whoever was cleaning up after the first error."""
    path.symlink_to(FULL)
    lines = JsonLines(path)
    with pytest.raises(DiskError, match=r"lines\.jsonl: found a full disk"):
        lines.append({"step": 1})
    lines.close()
    path.unlink()
    lines.append({"step": 2})
    lines.close()
    assert lines.rows() == [{"step": 2}]


def test_going_back_drops_what_came_after(path: Path) -> None:
    lines = JsonLines(path)
    for step in range(5):
        lines.append({"step": step})
    lines.rewind(2)
    lines.append({"step": 3, "again": True})
    assert lines.rows() == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    JsonLines(path.with_name("none.jsonl")).rewind(2)
    assert not path.with_name("none.jsonl").exists()


def test_a_tail_reads_each_line_once_and_waits_for_its_end(path: Path) -> None:
    tail = Tail(path)
    assert tail.new() == []
    with open(path, "a") as file:
        file.write('{"step": 1}\n{"st')
        file.flush()
        assert tail.new() == [{"step": 1}]
        assert tail.new() == []
        file.write('ep": 2}\n')
    assert tail.new() == [{"step": 2}] and not tail.again


def test_a_tail_begins_again_where_a_run_went_back(path: Path) -> None:
    lines, tail = JsonLines(path), Tail(path)
    for step in range(4):
        lines.append({"step": step})
    assert len(tail.new()) == 4
    lines.rewind(1)
    for step in range(2, 8):  # longer than before: the size alone would not tell
        lines.append({"step": step, "again": True})
    new = tail.new()
    assert tail.again
    assert [row["step"] for row in new] == list(range(8))
    assert tail.new() == [] and not tail.again
