"""Pictures and questions of a run's validation set, for a demo.

Knows: which run a name means, and which of its held-out conversations make an example.
Does not know: pages, or where examples are copied.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from workbench.errors import DataError, WorkbenchError
from workbench.run import Run


def run_of(name: str | Path) -> Run | None:
    """The training run behind a run folder, a quickstart's folder or a checkpoint in one; None for anything else."""
    path = Path(name)
    for folder in (path, path / "finetune", *path.absolute().parents[:2]):
        if (folder / "run.json").is_file() and (run := Run.open(folder)).info.get("kind") != "quickstart":
            return run
    return None


def validation_examples(name: str | Path, count: int) -> list[tuple[str, Path]]:
    """At most `count` (question, picture) of different pictures; none without a run, or where its data is gone."""
    run = run_of(name)
    if run is None or count < 1:
        return []
    from workbench.training.source import read_source

    found: dict[Path, str] = {}
    try:
        recipe = run.recipe
        source = read_source(recipe.data, seed=recipe.train.seed)
        for conversation in source.val:
            first = next(message for message in conversation.messages if message.role == "user")
            if len(found) == count:
                break
            if len(first.media) == len(conversation.images) == 1 and first.text.strip():
                with suppress(DataError):  # its picture is gone: another may be shown
                    found.setdefault(source.resolve(conversation.images[0]), first.text.strip())
    except WorkbenchError:
        return []
    return [(question, path) for path, question in found.items()]
