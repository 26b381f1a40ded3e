"""The shipped notebooks: copied to a person's folder, opened in JupyterLab, and published executed as web pages.

Knows: which notebooks there are, that what is installed is never edited, how a notebook is run from top to bottom, and
that a page needs no kernel, no script and no other host.
Does not know: what any notebook shows; how a widget looks without a kernel is its own affair (`widgets/static.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import resources
from workbench.errors import DataError

if TYPE_CHECKING:
    from nbformat import NotebookNode

TOUR = "00_tour"
SETTINGS = resources.PACKAGE / "jupyter"
"""What JupyterLab does by default where a person has not said otherwise: it does not ask whether they want news."""
LIVE = "live"
"""Tag of a cell that is for a person who looks, such as FiftyOne's App: not run for a page."""
CELL_SECONDS = 1800
"""A cell that takes longer has failed: a training on a busy machine may take long."""


def notebook_names() -> list[str]:
    """The shipped notebooks, in the order to read them.

    >>> notebook_names()[0]
    '00_tour'
    """
    return sorted(path.stem for path in resources.notebooks_folder().glob("*.ipynb"))


def copy_notebooks(folder: str | Path) -> list[Path]:
    """Put the shipped notebooks into `folder`; one that is there already is a person's own and stays as it is."""
    folder = Path(folder)
    copies = [folder / f"{name}.ipynb" for name in notebook_names()]
    with resources.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for copy in copies:
            if not copy.exists():
                resources.write_atomic(copy, (resources.notebooks_folder() / copy.name).read_bytes())
    return copies


# --- JupyterLab ---------------------------------------------------------------------------------------------------


def lab(folder: str | Path = "lab", *, port: int | None = None, browser: bool = True, more: Sequence[str] = ()) -> int:
    """Open JupyterLab at the tour, in a folder of the person's own, with the database running; returns its exit status.

    Lasts as long as JupyterLab does. `more`: further arguments for JupyterLab. Raises `DatabaseError` where no database
    can be used, `DataError` for a folder that cannot be one.
    """
    from workbench.curation.database import ensure_database

    folder = Path(folder).absolute()
    if folder.is_file():
        raise DataError(str(folder), found="a file", expected="a folder for the notebooks", fix="name another")
    copy_notebooks(folder)
    ensure_database()  # this process uses it as long as JupyterLab lasts, so that every kernel finds it there
    settings = os.pathsep.join(filter(None, (str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH"))))
    environment = {**os.environ, "PYTHONPATH": resources.import_path(), "JUPYTER_CONFIG_PATH": settings}
    with subprocess.Popen(_jupyter(folder, port, browser, more), env=environment) as server:
        for number in (signal.SIGINT, signal.SIGTERM):  # JupyterLab decides: it asks whether Ctrl-C was meant
            signal.signal(number, lambda caught, _: server.terminate() if caught == signal.SIGTERM else None)
        return server.wait()


def _jupyter(folder: Path, port: int | None, browser: bool, more: Sequence[str]) -> list[str]:
    """The command. Of this machine only; asks no other host for news or updates."""
    command = [
        sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{TOUR}.ipynb", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    if port is not None:
        command.append(f"--port={port}")
    if not browser:
        command.append("--no-browser")
    if (
        getattr(os, "geteuid", lambda: 1)() == 0
    ):  # in a container; it listens on this machine only, and asks for a token
        command.append("--allow-root")
    return [*command, *more]


# --- pages --------------------------------------------------------------------------------------------------------


def publish(
    out: str | Path, notebooks: Iterable[str | Path] = (), *, say: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """Run notebooks from top to bottom in the folder `out`, and write each as NAME.ipynb and NAME.html; the pages.

    `notebooks`: names of shipped ones or files; all shipped ones by default. What they make (`data/`, `runs/`) lies in
    `out` too, and a second run uses it. `say` is told what is being run. Raises `DataError` for a notebook that is not
    there, and for one of which a cell fails; the pages before it are written.
    """
    files = [_find(one) for one in notebooks] or [_find(name) for name in notebook_names()]
    out, pages = Path(out), []
    with resources.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for file in files:
        say(f"running {file.stem}")
        made = run(file, out)
        resources.write_atomic(out / f"{file.stem}.ipynb", _text(made))
        resources.write_atomic(out / f"{file.stem}.html", as_page(made, file.stem))
        pages.append(out / f"{file.stem}.html")
    return pages


def run(notebook: str | Path, folder: str | Path) -> NotebookNode:
    """The notebook with its outputs, run by a kernel of its own in `folder`. Raises `DataError` naming what failed."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    made = nbformat.read(str(notebook), as_version=4)
    quiet = ["--log-level=ERROR"]  # a kernel warns of connections that are this machine's own
    settings: dict[str, Any] = {
        "timeout": CELL_SECONDS,
        "kernel_name": "python3",
        "resources": {"metadata": {"path": str(folder)}},
        "extra_arguments": quiet,
        "skip_cells_with_tag": LIVE,
    }
    client = NotebookClient(made, **settings)
    environment = {"WORKBENCH_PROGRESS": "off", **os.environ, "PYTHONPATH": resources.import_path()}
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        number, source = _failed(made)
        found = f"{error.ename}: {error.evalue}" if error.ename else str(error)
        where, fix = f"{Path(notebook).name}, cell {number}", f"the cell ends with: {source}"
        raise DataError(where, found=found, fix=fix) from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise DataError(Path(notebook).name, found=str(error).splitlines()[0]) from None
    return made


def as_page(notebook: NotebookNode, title: str) -> str:
    """One HTML file that needs nothing else: widgets as they were, without a kernel; no output of `LIVE` cells."""
    from jinja2 import PackageLoader
    from nbconvert import HTMLExporter

    shown = deepcopy(notebook)
    shown.metadata.pop("widgets", None)  # a widget whose state is not there is shown by its own HTML
    shown.metadata["title"] = title
    for cell in shown.cells:
        if LIVE in cell.metadata.get("tags", ()):
            cell.outputs = []
    exporter = HTMLExporter(
        template_name="lab", template_file="notebook.html.jinja", extra_loaders=[PackageLoader("workbench", ".")]
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter.from_notebook_node(shown)[0]


def _find(notebook: str | Path) -> Path:
    """A file, or the shipped notebook of this name."""
    shipped = resources.notebooks_folder() / f"{Path(notebook).stem}.ipynb"
    if Path(notebook).suffix == ".ipynb" and Path(notebook).is_file():
        return Path(notebook)
    if str(notebook) in (shipped.stem, shipped.name) and shipped.is_file():
        return shipped
    near = get_close_matches(str(notebook), notebook_names(), 1)
    expected = f"a notebook file, or one of {', '.join(notebook_names())}"
    raise DataError(
        str(notebook), found="no such notebook", expected=expected, fix=f"did you mean {near[0]}?" if near else ""
    )


def _failed(notebook: NotebookNode) -> tuple[int, str]:
    """(number among all cells, last line) of the cell that failed."""
    for number, cell in enumerate(notebook.cells, 1):
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            return number, cell.source.splitlines()[-1]
    return 0, ""


def _text(notebook: NotebookNode) -> str:
    import nbformat

    return nbformat.writes(notebook) + "\n"
