"""Where things lie, and that files and folders are whole whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from workbench import resources
from workbench.errors import DataError, DiskError, RunError, WorkbenchError
from workbench.resources import atomic_folder, disk_errors, file_lock, write_atomic

unix = pytest.mark.skipif(os.name == "nt", reason="kill -9 and /dev/full are Unix")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# --- places ---------------------------------------------------------------------------------------------------


def test_shipped_folders_exist() -> None:
    assert (resources.recipes_folder() / "tiny-align.yaml").is_file()
    for folder in (resources.notebooks_folder(), resources.datasets_folder()):
        assert folder.parent == resources.recipes_folder().parent


def test_the_state_folder_is_where_the_environment_says_and_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "a" / "b"))
    assert resources.state_folder() == (tmp_path / "a" / "b").resolve()
    assert (tmp_path / "a" / "b").is_dir()


def test_else_the_state_folder_is_the_platforms_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORKBENCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    assert tmp_path.resolve() in resources.state_folder().parents


def test_a_home_that_nobody_has_is_an_error_that_says_so_and_anybody_elses_is_not() -> None:
    assert resources.expanded("~/a") == Path.home() / "a" and resources.expanded("a~b") == Path("a~b")
    with pytest.raises(DataError, match=r"^~no-such-person/x: found no home folder of no-such-person on this machine"):
        resources.expanded("~no-such-person/x")
    with pytest.raises(RunError, match="found a NUL character"):
        resources.expanded("a\0b", RunError)


@unix
def test_files_of_a_folder_are_for_whom_the_umask_says_also_those_that_safetensors_writes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            save_file({"a": np.zeros(2)}, folder / "model.safetensors")
            (folder / "inside").mkdir()
            (folder / "inside" / "serve.sh").touch(mode=0o700)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").rglob("*")}
    assert modes == {"model.safetensors": "0o640", "inside": "0o750", "serve.sh": "0o740"}


def test_clean_state_removes_what_is_named_and_nothing_else(home: Path) -> None:
    write_atomic(home / "database" / "journal", b"x" * 1000)
    write_atomic(home / "datasets" / "a.png", b"y" * 10)
    assert resources.state_sizes() == {"database": 1000, "datasets": 10}
    resources.clean_state(["database"])
    assert resources.state_sizes() == {"datasets": 10}
    with pytest.raises(WorkbenchError, match="databse: found no such entry in .* expected datasets"):
        resources.clean_state(["databse"])


def test_clean_state_refuses_a_path_out_of_the_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(WorkbenchError):
        resources.clean_state(["../precious"])
    assert (tmp_path / "precious").exists()


# --- files ----------------------------------------------------------------------------------------------------


@given(st.binary() | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_written_file_holds_what_was_written(tmp_path: Path, data: bytes | str) -> None:
    file = tmp_path / "new" / "file"
    write_atomic(file, data)
    assert file.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(file.parent) == ["file"]


@unix
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    message = "x.json: found a full disk; expected free space.*is intact"
    with pytest.raises(DiskError, match=message), disk_errors("x.json"), open("/dev/full", "w") as full:
        full.write("x" * 100_000)


@unix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="no permission"):
        write_atomic(tmp_path / "file", "x")
    tmp_path.chmod(0o700)


def test_a_file_or_a_folder_in_the_way_is_one_clear_error_that_names_it(tmp_path: Path) -> None:
    """`import --out FILE`, `train --out FILE/x` and `evaluate --out DIR` once ended in a traceback."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place, message in (
        (tmp_path / "file" / "below", f"{tmp_path / 'file'}: found something of that name; expected a new or empty"),
        (tmp_path / "file" / "far" / "below", "file.far: found a file where a folder has to be; expected a folder"),
        (tmp_path / "folder", f"{tmp_path / 'folder'}: found a folder; expected a file; .*choose another"),
    ):
        with pytest.raises(DiskError, match=message):
            write_atomic(place, "y")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_place_where_no_folder_can_be_is_one_clear_error(tmp_path: Path) -> None:
    name = "x" * 300
    for place in (tmp_path / name / "file", Path("/proc/nowhere/file")) if os.path.isdir("/proc/self") else ():
        for write in (lambda p: write_atomic(p, "x"), resources.make_folder, resources.check_writable, _folder_at):
            with pytest.raises(DiskError) as caught:
                write(place)
            assert ("x" * 300 in str(caught.value)) == (name in str(place))
            assert "too long" in str(caught.value) or "no folder can be made" in str(caught.value)
    resources.check_writable(tmp_path / "new" / "page.html")
    resources.check_writable(tmp_path)
    assert os.listdir(tmp_path) == ["new"]


def _folder_at(path: Path) -> None:
    with atomic_folder(path):
        pass


def test_another_os_error_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").read_text()


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskError):
        write_atomic(tmp_path / "folder", "a file cannot take a folder's name")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@unix
def test_killed_at_any_moment_a_file_is_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomic(file, "0" * 200_000)
    code = """
        import sys
        from workbench.resources import write_atomic
        print("ready", flush=True)
        for number in range(1, 100000):
            write_atomic(sys.argv[1], str(number % 10) * 200_000)
    """
    for delay in (0.0, 0.003, 0.011):
        writer = python(code, file)
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.kill()
        writer.wait()
        text = file.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1


# --- folders --------------------------------------------------------------------------------------------------


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as building:
        (building / "sub").mkdir()
        (building / "sub" / "file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "sub" / "file").read_text() == "x"
    assert os.listdir(tmp_path) == ["made"]


def test_an_error_inside_leaves_no_folder_and_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "made"):
        raise ValueError("no")
    assert os.listdir(tmp_path) == []
    write_atomic(tmp_path / "made" / "old", "x")
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "made", replace=True):
        raise ValueError("no")
    assert (tmp_path / "made" / "old").exists()


def test_a_folder_in_the_way_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "made" / "old", "x")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "made"):
        pass
    with atomic_folder(tmp_path / "made", replace=True) as building:
        (building / "new").write_text("y")
    assert os.listdir(tmp_path / "made") == ["new"]
    assert os.listdir(tmp_path) == ["made"]


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    write_atomic(tmp_path / ".made.old" / "old", "x")  # what a crash at the worst moment leaves
    resources.recover_folder(tmp_path / "made")
    assert os.listdir(tmp_path) == ["made"]


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOSPC, "a full disk"), (errno.EFBIG, "a file larger than may be written here")]
)
def test_a_full_disk_inside_a_folder_is_one_clear_error(tmp_path: Path, number: int, told: str) -> None:
    with pytest.raises(DiskError, match=f"made: found {told}"), atomic_folder(tmp_path / "made"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


# --- locks ----------------------------------------------------------------------------------------------------

HOLD = """
    import sys, time
    from workbench.resources import file_lock
    with file_lock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""


def test_one_writer_at_a_time_even_in_one_process(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock"):
        message = f"another writer .process {os.getpid()}.*one writer at a time"
        with pytest.raises(RunError, match=message), file_lock(tmp_path / "lock"):
            pass
        with pytest.raises(DataError), file_lock(tmp_path / "lock", error=DataError):
            pass
    with file_lock(tmp_path / "lock"):
        pass


@unix
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    holder = python(HOLD, tmp_path / "lock")
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    lock = resources.FileLock(tmp_path / "lock")
    assert lock.held() and lock.holder() == holder.pid
    with pytest.raises(RunError, match=f"process {holder.pid}"):
        lock.acquire()
    holder.kill()
    holder.wait()
    assert not lock.held()
    lock.acquire()
    assert lock.holder() == os.getpid()
    lock.release()


@unix
def test_the_lock_is_taken_over_from_children_that_outlive_their_parent(tmp_path: Path) -> None:
    """A forked worker inherits the lock's file and keeps it locked when its parent is killed."""
    fork = "if child := os.fork(): print(child, flush=True)"
    code = HOLD.replace("import sys", "import os, sys").replace('print("held", flush=True)', fork)
    holder = python(code, tmp_path / "lock")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        with file_lock(tmp_path / "lock", wait=5):
            assert (tmp_path / "lock").read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)


@unix
def test_waiting_gets_the_lock_when_its_holder_ends(tmp_path: Path) -> None:
    holder = python(HOLD.replace("time.sleep(60)", "time.sleep(0.3)"), tmp_path / "lock")
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with file_lock(tmp_path / "lock", wait=20):
        assert holder.wait(5) == 0
