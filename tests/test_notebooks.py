"""The notebooks: stripped in git, copied and never overwritten, run from top to bottom, published without a kernel."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

import pytest

from workbench import cli, notebooks, resources
from workbench.errors import DataError

sys.path.insert(0, str(Path(__file__).parent))
from notebook_server import opened_lab  # noqa: E402

FILES = sorted(resources.notebooks_folder().glob("*.ipynb"))
NAMES = ("00_tour", "01_curate", "02_instruct", "03_train", "04_evaluate", "05_chat_and_serve")
NOTIFICATIONS = "@jupyterlab/apputils-extension:notification"


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def test_these_are_the_notebooks() -> None:
    assert tuple(notebooks.notebook_names()) == NAMES


# --- as they lie in git -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_output_is_kept_in_git(path: Path) -> None:
    """nbstripout does it before a commit (`.pre-commit-config.yaml`)."""
    kept = [cell["id"] for cell in cells(path) if cell.get("outputs") or cell.get("execution_count")]
    assert kept == []
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_says_what_one_will_have(path: Path) -> None:
    told = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
    assert "you will have:**" in told[0] and told[-1].startswith("## Now with your own")
    long = [source for source in code(path)[1:] if len([line for line in source.splitlines() if line]) > 5]
    assert long == []
    logic = [source for source in code(path) if re.search(r"^\s*(if|for|while|def|class|try|with)\b", source, re.M)]
    assert logic == [] and any("assert " in source for source in code(path))


# --- a folder of one's own ----------------------------------------------------------------------------------------


def test_a_copy_is_a_persons_own(tmp_path: Path) -> None:
    notebooks.copy_notebooks(tmp_path / "mine")
    tour = tmp_path / "mine" / "00_tour.ipynb"
    tour.write_text("edited")
    (tmp_path / "mine" / "01_curate.ipynb").unlink()
    assert [copy.stem for copy in notebooks.copy_notebooks(tmp_path / "mine")] == list(NAMES)
    assert tour.read_text() == "edited" and (tmp_path / "mine" / "01_curate.ipynb").is_file()


def test_lab_refuses_a_file_as_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert cli.main(["lab", str(tmp_path / "taken")]) == 1
    assert "found a file; expected a folder for the notebooks" in capsys.readouterr().err


def test_lab_opens_the_tour_with_the_database_running(tmp_path: Path) -> None:
    users = tmp_path / "home" / "database" / "users"
    with opened_lab(tmp_path / "mine", tmp_path / "lab.log", WORKBENCH_HOME=str(tmp_path / "home")) as url:
        with urllib.request.urlopen(url, timeout=60) as reply:
            assert "JupyterLab" in reply.read().decode()
        with urllib.request.urlopen(url.replace("/lab/tree/", "/api/contents/"), timeout=60) as reply:
            assert json.load(reply)["type"] == "notebook"
        news = url.replace("/lab/tree/00_tour.ipynb", f"/lab/api/settings/{NOTIFICATIONS}")
        with urllib.request.urlopen(news, timeout=60) as reply:
            assert json.load(reply)["schema"]["properties"]["fetchNews"]["default"] == "false", "nobody is asked"
        assert list(users.iterdir()), "the command uses the database as long as JupyterLab lasts"
        assert "/lab/tree/00_tour.ipynb?token=" in (tmp_path / "lab.log").read_text()
    assert not list(users.iterdir()), "and stops it, as the last one out"


# --- pages --------------------------------------------------------------------------------------------------------


def write(path: Path, *sources: str) -> Path:
    import nbformat.v4 as v4

    made = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    path.write_text(json.dumps(made))
    return path


def test_a_page_shows_widgets_without_a_kernel_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    sources = (
        "import workbench as wb\nfrom workbench.conversation import Conversation, Message\n"
        "one = Conversation('one', (Message('user', 'What <b>is</b> it?'), Message('assistant', 'A cat.')))",
        "wb.gallery([one])",
        "one",
        "'only live'",
    )
    path = write(tmp_path / "mine.ipynb", *sources)
    made = json.loads(path.read_text())
    made["cells"][-1]["metadata"]["tags"] = [notebooks.LIVE]
    path.write_text(json.dumps(made))
    (page,) = notebooks.publish(tmp_path / "out", [path])
    text = page.read_text()
    assert text.count("A cat.") == 3  # in the code, in the gallery, as a conversation
    assert "&#x27;only live&#x27;" not in text.split("</code>")[-1] and "widget-view" not in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", text) and "cdn" not in text.lower()
    assert json.loads((tmp_path / "out" / "mine.ipynb").read_text())["cells"][0]["execution_count"] == 1


def test_a_cell_that_fails_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.ipynb", "1", "import workbench as wb\nwb.Dataset.open('nowhere')")
    with pytest.raises(DataError, match=r"mine.ipynb, cell 2: found DataError: nowhere: found no such folder"):
        notebooks.publish(tmp_path / "out", [path])
    assert not (tmp_path / "out" / "mine.html").exists()


def test_an_unknown_notebook_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["notebooks", "01_curated", "--out", str(tmp_path)]) == 1
    assert "found no such notebook" in (said := capsys.readouterr().err) and "did you mean 01_curate?" in said


# --- from top to bottom -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier notebook made, a later one uses; each makes it where it is alone."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name: str, folder: Path) -> None:
    (page,) = notebooks.publish(folder, [name])
    made = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))
    ran = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in ran if notebooks.LIVE not in cell["metadata"].get("tags", ()))
    errors = [output for cell in ran for output in cell["outputs"] if output.get("name") == "stderr"]
    assert errors == [], "nothing is complained about"
    assert len(page.read_text(encoding="utf-8")) < 8_000_000
