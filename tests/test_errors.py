"""One family of errors, each of which says where, what was found, what was expected and what to do."""

from __future__ import annotations

import pytest

from workbench import errors
from workbench.errors import WorkbenchError

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
FAMILY.remove(errors.ContextError)  # which says its parts itself


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"where": "a.yaml", "found": "x", "expected": "y", "fix": "do z"}, "a.yaml: found x; expected y; do z"),
        ({"where": "a.yaml", "found": "x"}, "a.yaml: found x"),
        ({"found": "x", "expected": "y"}, "found x; expected y"),
        ({"where": "a.yaml"}, "a.yaml"),
        ({"fix": "do z"}, "do z"),
        ({}, ""),
    ],
)
def test_any_of_the_four_parts_may_be_absent(parts: dict[str, str], text: str) -> None:
    assert str(WorkbenchError(**parts)) == text


def test_a_prompt_that_is_too_long_is_told_with_both_numbers() -> None:
    error = errors.ContextError("here", 5099, 256, fix="shorten it")
    assert isinstance(error, errors.RenderError) and (error.tokens, error.limit) == (5099, 256)
    assert "5099" in error.found and "256" in error.expected


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_of_the_family_and_keeps_its_parts(kind: type[WorkbenchError]) -> None:
    error = kind("here", found="this", expected="that", fix="do so")
    assert isinstance(error, WorkbenchError)
    assert (error.where, error.found, error.expected, error.fix) == ("here", "this", "that", "do so")
    assert kind.__doc__


def test_a_notebook_shows_the_one_line_of_the_command_line() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as shown:
        shell.run_cell("from workbench.errors import DataError\nraise DataError('a.png', found='no such file')")
    assert [line for line in shown.stdout.splitlines() if line] == ["\x1b[31merror:\x1b[0m a.png: found no such file"]
