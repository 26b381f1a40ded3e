"""Every error a person can cause, as one family.

Knows: how to say where it happened, what was found, what was expected and what to do.
Does not know: the rooms that raise it; the command line turns a `WorkbenchError` into one line and exit status 1.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """An error with a place, a finding, an expectation and a remedy; any of the four may be empty.

    >>> str(wb.WorkbenchError("card.yaml", found="no 'roots'", expected="names of folders", fix="add roots:"))
    "card.yaml: found no 'roots'; expected names of folders; add roots:"
    """

    def __init__(self, where: str = "", *, found: str = "", expected: str = "", fix: str = "") -> None:
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        parts = [f"found {found}" if found else "", f"expected {expected}" if expected else "", fix]
        body = "; ".join(part for part in parts if part)
        super().__init__(f"{where}: {body}" if where and body else where or body)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, which IPython asks for: the command line's one line. `%debug` has the rest."""
        return [f"\x1b[31merror:\x1b[0m {self}"]


def kind_of(value: object) -> str:
    """What a value is, in a few words, for the `found` of an error.

    >>> kind_of(3), kind_of(None)
    ('3, of type int', 'None')
    """
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return shown if value is None else f"{shown}, of type {type(value).__name__}"


def not_unicode(problem: UnicodeEncodeError) -> str:
    """What cannot be saved of a text, for the `found` of an error: half of a surrogate pair, which JSON can write."""
    return f"text that is not Unicode ({problem.object[problem.start : problem.end]!r})"


class RecipeError(WorkbenchError):
    """A recipe that cannot be run: unknown key, wrong type, or two fields that exclude each other."""


class DataError(WorkbenchError):
    """A dataset folder, an import or a file of conversations that is not what it says."""


class ImageError(DataError):
    """One image that cannot be used; `where` is its path."""


class ConversationError(DataError):
    """A conversation that breaks the legal shape; `where` is its id and the number of the message."""


class RenderError(WorkbenchError):
    """A conversation that is legal but cannot be trained on or prompted with under this template."""


class ContextError(RenderError):
    """A prompt of `tokens` tokens that leaves no room for an answer in a context of `limit`."""

    def __init__(self, where: str, tokens: int, limit: int, *, fix: str = "") -> None:
        found, expected = f"a prompt of {tokens} tokens", f"fewer than {limit}, what the model was built for"
        super().__init__(where, found=found, expected=expected, fix=fix)
        self.tokens, self.limit = tokens, limit


class ModelError(WorkbenchError):
    """Model parts that do not fit together, are missing, or are not what was promised."""


class BusyError(WorkbenchError):
    """More is asked than can be answered now; asked again later it may be."""


class CheckpointError(ModelError):
    """A checkpoint that is incomplete, changed, or does not reproduce what was saved."""


class TrainingError(WorkbenchError):
    """A run that must not start or cannot go on, for example one with no supervised token."""


class DatabaseError(WorkbenchError):
    """No MongoDB that FiftyOne can use."""


class RunError(WorkbenchError):
    """A run folder that is in the way, in use, or incomplete."""


class MissingPackageError(WorkbenchError):
    """An optional package is not installed; `fix` is the line that installs it."""


class DiskError(WorkbenchError):
    """The disk is full or not writable; what was written before is intact."""
