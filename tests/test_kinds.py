"""A public function that is given a value of a wrong kind says what it expected; no traceback of its insides."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.errors import WorkbenchError

OTHERS = {
    "scenes", "clean", "compare", "Budget", "SamplingOptions", "ScriptedModel", "Message", "Image", "Video",
    "Conversation", "WorkbenchError", "Recipe", "Run", "Dataset", "Results", "Engine", "Server", "Renderer",
    "CurateRecipe", "RemoteModel", "doctor", "benchmarks", "quickstart", "open_images",
}  # fmt: skip
"""Values, whose own fields are checked where they are used, and what takes a folder to write, or nothing."""
FUNCTIONS = sorted({*wb.__all__, "open"} - OTHERS - {"__version__"})


class Wrong:
    """A value of no kind that anybody expects."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_of_a_wrong_kind_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(wb, name)
    given: dict[str, Any] = {
        one.name: tmp_path / "out" if one.name == "out" else Wrong()
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD
    }
    if name == "train":
        given["out"] = tmp_path / "out"
    with pytest.raises(WorkbenchError):
        function(**given)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wb.tokens(3), "conversation: found 3, of type int; expected a Conversation"),  # type: ignore[arg-type]
        (lambda: wb.gallery("x"), "x: found no such folder; expected a dataset"),
        (lambda: wb.gallery(None), "gallery: found None; expected a dataset, results, their folder, or conv"),  # type: ignore[arg-type]
        (lambda: wb.heatmap(None, None), "conversation: found None; expected a Conversation"),  # type: ignore[arg-type]
        (lambda: wb.chat(3), "model: found 3, of type int; expected a model that answers"),  # type: ignore[arg-type]
        (lambda: wb.train(3, out="x"), "recipe: found 3, of type int; expected a recipe, its file"),  # type: ignore[call-overload]
        (lambda: wb.curate(None), "dataset: found None; expected a Dataset, or its folder"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_it_says_what_was_expected(call: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.widgets.chat.in_notebook", lambda: True)
    with pytest.raises(WorkbenchError) as error:
        call()
    assert str(error.value).startswith(said)
