"""A notebook that trains keeps, when it is saved, a picture of how it went that needs no kernel."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from workbench.data.scene_files import Planted, make
from workbench.instruct.generator import generate
from workbench.recipe import Recipe
from workbench.resources import PACKAGE

CELLS = (
    "import workbench as wb\nrun = wb.train(wb.Recipe.load('recipe.yaml'), out='run', background=True)\nrun",
    "run.wait(progress=False)\nrun.view._thread.join(60)\nprint(run.status)",
)


@pytest.mark.timeout(400)
def test_the_live_view_of_a_finished_run_stays_as_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(tmp_path / "scenes", count=12, seed=5, planted=Planted(0, 0, 0))
    generate(dataset, tasks={"caption": 1}, questions_per_image=0)
    changed = ["train.batch_size=2", "train.threads=1", "train.max_steps=3", "train.answers_every=3"]
    data = [f"data.dataset={dataset.path}", "data.val_fraction=0.3"]
    (tmp_path / "recipe.yaml").write_text(Recipe.load("tiny-align", [*data, *changed]).to_yaml())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    first, last = notebook.cells
    (shown,) = first.outputs
    assert set(shown.data) == {"text/html", "text/plain"}, "no widget that a new kernel would not know"
    page = shown.data["text/html"]
    assert "finished, step 3 of 3" in page and "<polyline" in page and "expected: " in page
    assert last.outputs[0].text == "finished\n"
