"""The steps as FiftyOne itself executes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workbench.curation.plugin_link import link_plugin
from workbench.curation.refresh import view_of
from workbench.data.dataset import Dataset

Step = Callable[..., dict[str, Any]]


@pytest.fixture
def step(fiftyone: ModuleType, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    """Run one operator on the dataset's view; what it returned, and what it asked the App to do as `app`."""
    import fiftyone.operators as foo

    link_plugin(tmp_path / "plugins")
    monkeypatch.setattr(fiftyone.config, "plugins_dir", str(tmp_path / "plugins"))

    def run(name: str, **params: Any) -> dict[str, Any]:
        given = {"dataset": view_of(dataset)}
        with ThreadPoolExecutor(1) as thread:  # Playwright's loop runs in this one
            done = thread.submit(foo.execute_operator, f"@llava-workbench/review/{name}", given, params=params).result()
        assert done.error is None, done.error
        calls = [one.operator_uri.rpartition("/")[2] for one in done.executor._requests]
        return {**done.result, "app": calls}

    return run


def test_every_step_has_a_form_and_a_name(fiftyone: ModuleType) -> None:
    from workbench.plugin.operators import OPERATORS

    for one in OPERATORS:
        made = one()
        assert made.resolve_input(None).type.properties is not None
        assert made.config.label.startswith("Workbench: ") and made.config.description


def test_measures_copies_snapshot_and_undo(step: Step, dataset: Dataset) -> None:
    first = dataset.images["path"][0]
    copy = dataset.roots["images"] if "images" in dataset.roots else next(iter(dataset.roots.values()))
    assert (copy / first).is_file()
    assert "sharpness" in step("measures")["said"]
    assert all(view_of(dataset).values("sharpness"))
    version = step("snapshot")["said"].split()[2]
    assert version == dataset.lineage[-1]["version"]
    dataset.edit({"table": "images", "id": dataset.images["id"][0], "set": {"status": "removed", "reason": "test"}})
    assert view_of(dataset).match_tags("removed").count() == 1
    told = step("undo")
    assert told["said"].startswith(f"back at {version}") and told["app"] == ["reload_dataset"]
    assert view_of(dataset).match_tags("removed").count() == 0 and set(dataset.images["status"]) == {"ok"}
    assert all(view_of(dataset).values("sharpness"))  # the view was brought up to date, not made anew
    (copy / first).unlink()
    assert "broken" in step("dedupe")["said"]
    assert view_of(dataset).match_tags("broken").count() == 1


def test_generate_keeps_what_a_person_said(step: Step, dataset: Dataset) -> None:
    from workbench.curation.review import give_verdict

    name = dataset.conversation_rows["id"][0]
    give_verdict(view_of(dataset), name, "reject", who="ada")
    count = dataset.conversation_rows.height
    assert "detail: 8" in step("generate", model="rules", tasks=["detail"])["said"]
    assert dataset.conversation_rows.height >= count + 8  # held-out questions beside
    view = view_of(dataset)
    assert view.count("conversations.classifications") == dataset.conversation_rows.height
    labels = dict(
        zip(
            *view.values(
                [f"conversations.classifications.{key}" for key in ("conversation_id", "verdict")], unwind=True
            ),
            strict=True,
        )
    )
    assert labels[name] == "reject"


def test_out_and_in(step: Step, dataset: Dataset, tmp_path: Path) -> None:
    told = step("export", format="llava", out=str(tmp_path / "out.json"))
    assert told["said"].startswith(f"{len(dataset.conversations())} written to ")
    root = next(iter(dataset.roots.values()))
    again = step(
        "import", format="llava", source=str(tmp_path / "out.json"), images=str(root), out=str(tmp_path / "in")
    )
    assert again["app"] == ["open_dataset"]
    assert len(Dataset.open(tmp_path / "in").conversations()) == len(dataset.conversations())
    pictures = step("import", format="images", source=str(root), out=str(tmp_path / "pictures"))
    assert pictures["said"].startswith("8 images and 0 conversations")


def test_what_cannot_be_done_is_said_without_a_traceback(step: Step, dataset: Dataset, tmp_path: Path) -> None:
    assert (
        "no such folder"
        in step("import", format="images", source=str(tmp_path / "none"), out=str(tmp_path / "x"))["problem"]
    )
    assert "expected http:// or https://" in step("generate", model="gpt", url="file:///etc/passwd")["problem"]
    assert "nothing" in step("undo")["problem"] or "no snapshot" in step("undo")["problem"]
    assert os.listdir(tmp_path / "plugins") == ["llava-workbench"]
