"""The wheel carries recipes, notebooks, datasets, tiny weights and templates, and works outside the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from workbench import resources

ROOT = resources.PACKAGE.parent
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="only in a checkout")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built and installed into a folder without any network."""
    place = tmp_path_factory.mktemp("wheel")
    quiet = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(place), str(ROOT)]
    run(*quiet, *build)
    (wheel,) = place.glob("llava_workbench-*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "--target", str(place / "site"), str(wheel)]
    run(*quiet, *install)
    return place / "site"


def run(*arguments: str, **options: Any) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def python(installed: Path, code: str) -> str:
    return run("-c", code, env={**os.environ, "PYTHONPATH": str(installed)}, cwd=installed.parent)


def test_an_installed_wheel_finds_its_own_files(installed: Path) -> None:
    code = """
import workbench
from workbench import resources
from workbench.recipe import Recipe, recipe_names
print(resources.PACKAGE)
for name in recipe_names():
    Recipe.load(name)
print(resources.recipes_folder(), resources.notebooks_folder(), resources.datasets_folder(), resources.tiny_folder())
"""
    package, folders = python(installed, code).splitlines()
    assert Path(package) == installed.resolve() / "workbench"
    assert all(Path(folder).is_dir() and installed.resolve() in Path(folder).parents for folder in folders.split())


def test_the_wheel_carries_every_tracked_file_that_is_shared(installed: Path) -> None:
    package = installed / "workbench"
    for folder in ("recipes", "notebooks", "datasets"):
        for file in (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.name != ".gitignore"):
            if ".ipynb_checkpoints" not in file.parts:
                assert (package / "_share" / file.relative_to(ROOT)).is_file(), file
    for file in (
        path for path in (ROOT / "workbench").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        assert (package / file.relative_to(ROOT / "workbench")).is_file(), file


def test_the_wheel_holds_no_tests_and_stays_small(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} <= {"workbench", "bin"}
    assert resources.size_of(installed / "workbench") < 30e6


def test_the_installed_command_runs(installed: Path) -> None:
    code = "import sys; from workbench.cli import main; sys.exit(main(['runs']))"
    assert python(installed, code) == "no run in runs"


# --- what has to be installed with it -------------------------------------------------------------------------

PROJECT = (
    tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if ROOT.joinpath("pyproject.toml").is_file()
    else {}
)


def distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def test_nothing_asks_for_torchvision() -> None:
    """PyPI's torchvision breaks next to a CPU torch, so no dependency of ours, however deep, may require it."""
    seen: set[str] = set()
    waiting = [distribution(requirement) for requirement in PROJECT["project"]["dependencies"]]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        waiting += [distribution(one) for one in requires if "extra ==" not in one]
    assert "torchvision" not in seen
    assert {"torch", "transformers", "fiftyone", "numpy"} <= seen


def test_every_third_party_import_is_declared() -> None:
    declared = {distribution(requirement) for requirement in PROJECT["project"]["dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {
        "msvcrt",
        *(distribution(requirement) for name in extras.keys() - {"test"} for requirement in extras[name]),
    }
    owners = metadata.packages_distributions()
    missing = {}
    for path in (ROOT / "workbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules = [node.module]
            for top in (
                {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - optional - {"workbench"}
            ):
                if not {name.lower().replace("_", "-") for name in owners.get(top, [])} & declared:
                    missing[top] = path.name
    assert missing == {}
