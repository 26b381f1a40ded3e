"""What every conversation lost while it was trained on: written step by step, read as a table, the worst ones first.

Knows: the files `losses-RANK.jsonl` of a run folder, a line per step, and how losses of early and late steps compare.
Does not know: tensors, where conversations are looked at (`curation/losses.py`), what is said in them
(`training/worst.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError, kind_of
from workbench.json_lines import JsonLines

if TYPE_CHECKING:
    import polars as pl

    from workbench.run import Run

AROUND = 33
"""A loss is held against the median of so many about it: they were measured on much the same model."""


class LossFile:
    """The losses that one process of a run writes. Files of more processes than there are now are trimmed too."""

    def __init__(self, folder: str | os.PathLike[str], *, rank: int = 0, world: int = 1) -> None:
        self.folder, self.rank, self.world = Path(folder), rank, world
        self._lines = JsonLines(self.folder / f"losses-{rank}.jsonl")

    def append(
        self, step: int, epoch: float, ids: Sequence[str], losses: Sequence[float], tokens: Sequence[int]
    ) -> None:
        """One step: per conversation the mean loss of its supervised tokens, and how many they are."""
        short = [float(f"{loss:.5g}") for loss in losses]
        self._lines.append({"step": step, "epoch": epoch, "ids": ids, "losses": short, "tokens": tokens})

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`."""
        self._lines.rewind(step)
        if self.rank == 0:
            for path, rank in _files(self.folder):
                if rank >= self.world:
                    JsonLines(path).rewind(step)

    def close(self) -> None:
        self._lines.close()


def read_losses(folder: str | os.PathLike[str]) -> pl.DataFrame:
    """Columns: step, epoch, id, loss (mean over the conversation's supervised tokens), tokens. In order of steps."""
    import polars as pl

    rows = [row for path, _ in _files(Path(folder)) for row in JsonLines(path).rows()]
    kinds: dict[str, Any] = {"step": pl.Int64, "epoch": pl.Float64}
    lists = {"ids": pl.List(pl.String), "losses": pl.List(pl.Float64), "tokens": pl.List(pl.Int64)}
    table = pl.DataFrame(rows, schema={**kinds, **lists}).explode(*lists)
    return table.rename({"ids": "id", "losses": "loss"}).drop_nulls("id").sort("step", maintain_order=True)


def by_conversation(losses: pl.DataFrame) -> pl.DataFrame:
    """Every conversation once, worst first. Columns: id, excess, loss, tokens, times (it was trained on).

    `loss` is the last one measured. `excess` is how much more a conversation lost than those of the steps about it, on
    average over all times: a loss alone would only tell the first steps of a run from its last ones.
    """
    import polars as pl

    usual = pl.col("loss").rolling_median(AROUND, min_samples=1, center=True)
    table = losses.sort("step", maintain_order=True).with_columns(excess=pl.col("loss") - usual)
    mean, last = pl.col("excess").mean(), pl.col("loss", "tokens").last()
    return table.group_by("id").agg(mean, last, times=pl.len()).sort("excess", "id", descending=[True, False])


def hardest(run: Run | str | os.PathLike[str]) -> pl.DataFrame:
    """`by_conversation` of a run. Raises `RunError` for one that recorded no losses."""
    if not isinstance(run, (str, os.PathLike)) and not hasattr(run, "path"):
        raise RunError("run", found=kind_of(run), expected="a Run, or its folder")
    path = Path(run if isinstance(run, (str, os.PathLike)) else run.path)
    table = by_conversation(read_losses(path))
    if not table.height:
        raise RunError(str(path), found="no losses of conversations", expected="the folder of a training run")
    return table


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Every file of losses with the number of the process that wrote it."""
    found = [(path, path.stem.removeprefix("losses-")) for path in folder.glob("losses-*.jsonl")]
    return sorted((path, int(rank)) for path, rank in found if rank.isdecimal())
