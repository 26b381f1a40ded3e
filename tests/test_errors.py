"""One family of errors, each of which says where, what was found, what was expected and what to do."""

from __future__ import annotations

import pytest

from workbench import errors
from workbench.errors import WorkbenchError

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


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


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_of_the_family_and_keeps_its_parts(kind: type[WorkbenchError]) -> None:
    error = kind("here", found="this", expected="that", fix="do so")
    assert isinstance(error, WorkbenchError)
    assert (error.where, error.found, error.expected, error.fix) == ("here", "this", "that", "do so")
    assert kind.__doc__
