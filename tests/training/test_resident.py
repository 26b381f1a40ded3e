"""What a process held at most: its tensors, without holes of its heap and pages of libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.resources import import_path

SCRIPT = """
import torch
from workbench.training import resident
from workbench.training.room import tighten

tighten()
torch.set_num_threads(1)
device = torch.device("cpu")
pieces = [torch.ones(15_000) for _ in range(1200)]  # 60 kB each: out of the heap
for start in range(0, 1200, 100):
    pieces[start : start + 99] = [None] * 99  # 12 holes of 6 MB
libraries = resident._of_libraries()
before = resident.held_now(device)
for _ in range(8):  # each too large for what the one before left of its hole
    torch.ones(1_000_000)
torch.ones(2_000_000)
print(resident.most_held(device) - before, libraries)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read as Linux tells it")
def test_the_most_held_is_that_of_the_tensors() -> None:
    environment = {"PYTHONPATH": import_path(), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    most, libraries = map(int, done.stdout.split())
    # The largest alone, since each goes before the next one comes, and what Python takes, a MB at a time; in holes they
    # would leave 7 MB.
    assert 7.9e6 < most < 8e6 + 3e6
    assert libraries > 10e6
