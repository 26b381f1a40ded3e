"""A public function that is given a value of a wrong kind says what it expected; no traceback of its insides."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.inference.attachments import listed
from workbench.widgets.session import Session

OTHERS = {
    "scenes", "clean", "Budget", "SamplingOptions", "ScriptedModel", "Image", "Video", "WorkbenchError", "Recipe",
    "Run", "Dataset", "Results", "Engine", "Server", "Renderer", "CurateRecipe", "RemoteModel", "doctor",
    "benchmarks", "quickstart", "open_images",
}  # fmt: skip
"""Values, whose own fields are checked where they are used, and what takes a folder to write, or nothing."""
FUNCTIONS = sorted({*wb.__all__, "open"} - OTHERS - {"__version__"})

ASKED = wb.Conversation("1", (wb.Message("user", ("What is it?",)),))
ARRAY = np.zeros((4, 4, 3))


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
        (lambda: wb.SamplingOptions(temperature="hot"),  # type: ignore[arg-type]
         "sampling option temperature: found 'hot', of type str; expected a number"),
        (lambda: wb.SamplingOptions(max_tokens=2.5),  # type: ignore[arg-type]
         "sampling option max_tokens: found 2.5, of type float; expected a whole"),
        (lambda: wb.SamplingOptions(seed="x"), "sampling option seed: found 'x', of type str; expected a whole number"),  # type: ignore[arg-type]
        (lambda: wb.SamplingOptions(stop=3), "sampling option stop: found 3, of type int; expected texts"),  # type: ignore[arg-type]
        (lambda: wb.SamplingOptions(stop=[3]), "sampling option stop: found (3,), of type tuple; expected texts"),  # type: ignore[arg-type]
        (lambda: wb.Message("user", 42), "message: found 42, of type int; expected a text, an Image, a Video"),  # type: ignore[arg-type]
        (lambda: wb.Message("user", ["a", 42]), "message: found 42, of type int; expected a text, an Image, a Video"),  # type: ignore[arg-type]
        (lambda: wb.Message("user", {"text": "a"}), "message: found {'text': 'a'}, of type dict; expected a text"),  # type: ignore[arg-type]
        (lambda: wb.Conversation("1", "hello"),  # type: ignore[arg-type]
         "conversation 1: found 'hello', of type str; expected a list of Messages"),
        (lambda: wb.Conversation("1", ["hello"]),  # type: ignore[arg-type]
         "conversation 1: found 'hello', of type str; expected a list of Mess"),
        (lambda: wb.Conversation("1", wb.Message("user", "a")), "conversation 1: found Message("),  # type: ignore[arg-type]
        (lambda: wb.Recipe.load("tiny-align", 42), "override: found 42, of type int; expected a text, for example"),  # type: ignore[arg-type]
        (lambda: wb.compare("run"), "compare: found 'run', of type str; expected a list of runs, or of their folders"),
        (lambda: wb.compare(["run"]), "run: found no run.json; expected a run folder"),
        (lambda: wb.compare([42]), "run: found 42, of type int; expected a Run, or its folder"),  # type: ignore[list-item]
        (lambda: wb.chat(wb.ScriptedModel([]), options=1), "options: found 1, of type int; expected SamplingOptions"),  # type: ignore[arg-type]
        (lambda: wb.chat(wb.ScriptedModel([]), options={"temprature": 1}), "options: found 'temprature'; expected one"),
        (lambda: wb.chat(wb.ScriptedModel([]), image=ARRAY), "image: found array([[[0., 0., 0.],"),  # type: ignore[arg-type]
        (lambda: wb.chat(wb.ScriptedModel([]), image=[ARRAY]), "image: found array([[[0., 0., 0.],"),  # type: ignore[list-item]
        (lambda: wb.tokens("run", ASKED),  # type: ignore[arg-type]
         "tokens: found a conversation in the place of the model; expected the conversation first"),
    ],
)  # fmt: skip
def test_it_says_what_was_expected(call: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.widgets.chat.in_notebook", lambda: True)
    with pytest.raises(WorkbenchError) as error:
        call()
    assert str(error.value).startswith(said)


def test_a_search_says_what_it_searches_for(tmp_path: Path) -> None:
    data = wb.scenes(tmp_path / "data", count=4)
    with pytest.raises(WorkbenchError, match="search, text: found 42, of type int; expected a few words"):
        wb.search(data, 42)  # type: ignore[arg-type]
    with pytest.raises(WorkbenchError, match="search, count: found '3', of type str; expected a whole number"):
        wb.search(data, "red", count="3")  # type: ignore[arg-type]


def test_an_array_is_told_how_it_becomes_a_picture() -> None:
    """Also to `ask` of the widget, which takes pictures one by one."""
    for given in (lambda: listed(ARRAY), lambda: Session([], lambda *told: None).attach(ARRAY)):  # type: ignore[arg-type]
        with pytest.raises(WorkbenchError, match=r"PIL\.Image\.fromarray"):
            given()


def test_one_override_is_one_override() -> None:
    assert wb.Recipe.load("tiny-align", "train.lr=2e-4").train.lr == 2e-4
    assert wb.Recipe.load("tiny-align", ["train.lr=2e-4"]).train.lr == 2e-4
