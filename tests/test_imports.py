"""A room imports only rooms above it; a light import stays light; every public name is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import workbench
from workbench import resources

PACKAGE = resources.PACKAGE
ROOMS = [
    "errors", "resources", "display", "hub", "origin", "conversation", "recipe_yaml", "recipe", "json_lines", "losses",
    "result_rows", "report", "run", "progress", "chat_model", "remote", "data", "model", "inference", "curation",
    "instruct", "training", "evaluation", "serving", "plugin", "widgets", "background",
    "quickstart_report", "quickstart", "doctor", "notebooks", "commands", "cli",
]  # fmt: skip
HEAVY = ("torch", "transformers", "fiftyone", "polars", "pyarrow", "datasets", "gradio", "numpy", "PIL", "pydantic")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts)


def room_of(module: str) -> str:
    """`workbench.data.images` -> `data`; `workbench` itself -> the empty text."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, at its top or inside a function, with its line; not what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    checked = {
        inside
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for branch in node.body
        for inside in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in checked:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "workbench":  # `from workbench import resources`
                yield from ((f"workbench.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def name_of(path: Path) -> str:
    return ".".join(("workbench", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = room_of(name_of(path))
    if room == "":
        return  # the package itself names every room, and loads one when it is asked for
    assert room in ROOMS, f"put the room {room!r} in its place in the order"
    for module, line in imported(path):
        if module.split(".")[0] == "workbench" and module != "workbench":
            other = room_of(module)
            if other in workbench.__all__ and other not in ROOMS or other == "__version__":
                continue
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name}:{line} imports {module}, a room below {room}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_curation_the_plugin_and_doctor_import_fiftyone(path: Path) -> None:
    if room_of(name_of(path)) in ("curation", "plugin", "doctor"):
        return
    lines = [line for module, line in imported(path) if module.split(".")[0] == "fiftyone"]
    assert lines == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_knows_and_what_not(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path.name} begins with a docstring"


def test_no_python_file_in_datasets() -> None:
    """A package there would shadow the `datasets` package for everybody who starts Python in the checkout."""
    assert list(resources.datasets_folder().rglob("*.py")) == []


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_workbench_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import workbench; took = time.process_time() - start;"
        f"print([name for name in {HEAVY!r} if name in sys.modules]); print(took)"
    )
    heavy, took = python(code).splitlines()
    assert heavy == "[]"
    assert float(took) < 0.2  # seconds of computing, whatever else this machine does


def test_help_is_light() -> None:
    code = (
        "import sys, contextlib, io; from workbench.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['train', '--help'])\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    assert python(code) == ""


def test_a_model_that_cannot_be_had_is_told_before_torch_is_loaded() -> None:
    train = ["train", "llava-1.5-7b-lora", "--out", "none"]
    commands = [["plan", "llava-1.5-7b-qlora", "--cards"], train, ["chat", "nobody/model"]]
    code = (
        "import sys\nfrom workbench.cli import main\n"
        f"assert [main(command) for command in {commands!r}] == [1, 1, 1]\n"
        f"print(*(name for name in {HEAVY[:3]!r} if name in sys.modules))"
    )
    assert python(code) == ""


def test_every_public_name_is_there() -> None:
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
        assert name in dir(workbench)
    shown = {name for name in dir(workbench) if not name.startswith("__")}
    assert shown == {*workbench.__all__, "open"} - {"__version__"}, "what a notebook offers after wb."
    with pytest.raises(AttributeError, match="has no attribute 'trian'; did you mean train\\?"):
        _ = workbench.trian


@pytest.mark.parametrize("name", ["quickstart", "doctor"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str) -> None:
    """In either order, and for `from workbench import ...` too."""
    module = f"workbench.{name}"
    orders = [
        f"import {module}, workbench as wb; f = wb.{name}",
        f"import workbench as wb; f = wb.{name}; import {module}; assert wb.{name} is f",
        f"from {module} import {name} as f; import workbench as wb; assert wb.{name} is f",
        f"from workbench import {name} as f; from {module} import {name} as g; assert f is g",
    ]
    for code in orders:
        python(f"{code}; import sys; assert type(f).__name__ == 'function' and sys.modules['{module}'].{name} is f")
