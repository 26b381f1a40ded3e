"""A person reviews, and the process is killed at random moments: the end equals an undisturbed review."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.dataset import Dataset

REVIEWER = """
import sys
import polars as pl
from workbench.conversation import to_chat
from workbench.curation.refresh import view_of
from workbench.curation.review import edit_messages, give_verdict
from workbench.curation.turns import with_text
from workbench.data.dataset import Dataset
from workbench.data.tables import frame_to_conversations

dataset = Dataset.open(sys.argv[1])
view = view_of(dataset)
print("ready", flush=True)
for number, name in enumerate(dataset.conversation_rows["id"]):
    one = next(frame_to_conversations(dataset.conversation_rows.filter(pl.col("id") == name)))
    if "verdict" in one.metadata:
        continue
    text = f"Corrected number {number}."
    if number % 2 == 0:
        edit_messages(view, name, with_text(to_chat(one), 1, text), who="ada")
    give_verdict(view, name, "reject" if number % 3 == 0 else "accept", who="ada")
print("done", flush=True)
"""


def review(dataset: Dataset, seconds: float | None = None) -> bool:
    """Whether the review came to its end; it is killed so long after it began."""
    process = subprocess.Popen(
        [sys.executable, "-c", REVIEWER, str(dataset.path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if seconds is not None:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    told = process.stdout.read()
    process.wait(60)
    return told.endswith("done\n")


def outcome(dataset: Dataset) -> list[dict[str, Any]]:
    """Everything that is kept but when it was said."""
    dataset = Dataset.open(dataset.path)
    rows = dataset.conversation_rows.sort("id")
    timeless = pl.col("source").str.replace_all(r'"time": "[^"]*"', '"time": ""')
    return rows.with_columns(timeless).to_dicts()


def test_a_review_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    fiftyone: Any, make_scenes: Any, tmp_path: Path
) -> None:
    calm, killed = make_scenes(tmp_path / "calm", 14), make_scenes(tmp_path / "killed", 14)
    start = time.perf_counter()
    assert review(calm)
    print(f"\nundisturbed: {calm.conversation_rows.height} conversations in {time.perf_counter() - start:.1f} s")
    rng, kills = random.Random(7), 0
    for _ in range(5):
        if review(killed, rng.uniform(0.02, 0.25)):
            break
        kills += 1
    assert kills >= 3, "the review was too quick to be killed"
    assert review(killed)
    assert outcome(killed) == outcome(calm)
    from workbench.curation.refresh import view_of

    names, said = view_of(Dataset.open(killed.path)).values(
        [f"conversations.classifications.{key}" for key in ("conversation_id", "verdict")], unwind=True
    )
    kept = {row["id"]: "reject" if row["status"] == "removed" else "accept" for row in outcome(killed)}
    assert dict(zip(names, said, strict=True)) == kept  # FiftyOne shows the same
