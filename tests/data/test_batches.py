"""map_batches: order, crashes that name their item, and the end of a killed parent's workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.data import batches
from workbench.data.batches import map_batches
from workbench.errors import DataError

HERE = {**os.environ, "PYTHONPATH": str(Path(batches.__file__).parents[2])}


def square(item: int) -> int:
    return item * item


def square_but_die_at_13(item: int) -> int:
    if item == 13:
        os._exit(9)  # as a decoder that crashes, or the kernel when memory runs out
    return item * item


def raise_at_3(item: int) -> int:
    if item == 3:
        raise DataError("item 3", found="a fault")
    return item * item


def test_results_come_in_order_from_a_pool_and_from_this_process() -> None:
    expected = [item * item for item in range(50)]
    assert list(map_batches(square, range(50), "square", batch_size=7, workers=2)) == expected
    assert list(map_batches(square, range(50), "square", workers=1)) == expected


def test_nothing_to_do_shows_no_progress(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "rich")
    assert list(map_batches(square, [], "squares")) == []
    assert "squares" not in "".join(capfd.readouterr())
    assert list(map_batches(square, [2], "squares")) == [4]
    assert "squares" in "".join(capfd.readouterr())


def test_an_item_that_kills_its_worker_is_found_and_the_others_are_done() -> None:
    found = list(map_batches(square_but_die_at_13, range(20), "square", batch_size=5, workers=2, on_crash=lambda _: -1))
    assert found == [-1 if item == 13 else item * item for item in range(20)]


def test_without_on_crash_the_error_names_the_item() -> None:
    with pytest.raises(DataError, match="^13: found its worker process died"):
        list(map_batches(square_but_die_at_13, range(12, 16), "square", batch_size=2, workers=2))


def test_an_exception_of_the_function_arrives_as_it_is() -> None:
    with pytest.raises(DataError, match="item 3: found a fault"):
        list(map_batches(raise_at_3, range(8), "square", batch_size=2, workers=2))


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import os, sys\nfrom workbench.data.batches import map_batches\n"
        "print(list(map_batches(os.path.basename, ['a', 'b'], 'x', batch_size=1, workers=2)))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=HERE)
    assert ended.returncode != 0
    assert "if __name__ == '__main__':" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\nfrom workbench.data.batches import _start\nimport os\n"
        "if __name__ == '__main__':\n"
        "    pool = _start(1)\n    print(pool.submit(os.getpid).result(), flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=HERE)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
