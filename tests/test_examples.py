"""Every example in the docstring of a public name is run, and the page that is made of them is not stale."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.data.scene_files import Planted
from workbench.resources import PACKAGE

DOCS = PACKAGE.parent / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> list[doctest.DocTest]:
    """Those of the public names and of their methods."""
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = {name: finder.find(getattr(wb, name), name, globs={}) for name in wb.__all__ if name != "__version__"}
    return [test for tests in found.values() for test in tests if test.examples]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A folder with the dataset `data` and the run `runs/align`; examples of results find those of a scripted model."""
    folder, before = tmp_path_factory.mktemp("examples"), Path.cwd()
    os.chdir(folder)
    dataset = wb.scenes("data", count=24, seed=3, planted=Planted(0, 0, 0))
    wb.generate(dataset)
    recipe = wb.Recipe.load("tiny-align", ["data.dataset=data", "train.max_steps=2", "train.batch_size=4"])
    wb.train(recipe, out="runs/align", progress=False)
    results = wb.evaluate(wb.ScriptedModel(lambda asked: "yes", name="yes"), dataset)
    yield {"wb": wb, "dataset": dataset, "results": results}
    os.chdir(before)


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_of_a_public_name_is_so(example: doctest.DocTest, world: dict[str, Any]) -> None:
    said: list[str] = []
    example.globs = dict(world)
    ran = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert ran.failed == 0, "".join(said)


def test_most_public_names_have_an_example() -> None:
    with_one = {example.name.split(".")[0] for example in examples()}
    assert len(with_one) >= 40


def test_every_public_name_says_what_it_does() -> None:
    bare = [name for name in wb.__all__ if name != "__version__" and not inspect.getdoc(getattr(wb, name))]
    assert bare == []


@pytest.mark.skipif(not DOCS.is_dir(), reason="only in a checkout")
def test_the_page_of_public_names_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run: python docs/make_api.py"
    public = set(wb.__all__) - {"__version__"} | {"open"}
    assert {name for name in public if f"### `{name}" not in made.page()} == set()
