"""What the README says is so: its commands parse, its recipes are there, its tree names every module."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from workbench import cli
from workbench.commands import training
from workbench.recipe import Recipe
from workbench.resources import PACKAGE

README = PACKAGE.parent / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
COMMANDS = [
    command
    for line in re.findall(r"^    (workbench .+)$", TEXT, re.MULTILINE)
    for command in line.split("  #")[0].split("; ")
]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command: str) -> None:
    given = cli._parser().parse_args(shlex.split(command)[1:])
    if given.verb is training._train:
        Recipe.load(given.recipe, given.set)


def test_the_tree_names_every_module() -> None:
    tree = TEXT.split("## Where things are")[1].split("\n## ")[0]
    modules = [path for path in PACKAGE.rglob("*.py") if "_share" not in path.parts]
    missing = [str(path.relative_to(PACKAGE)) for path in modules if not re.search(rf"\b{path.name}\b", tree)]
    assert missing == []
    named = set(re.findall(r"\b\w+\.py\b", tree))
    assert named <= {path.name for path in modules}, "the tree names a module that is gone"


def test_files_and_folders_named_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:recipes|docs|notebooks|datasets|tests)/[\w./-]*)`", TEXT):
        assert (README.parent / Path(name)).exists(), name
