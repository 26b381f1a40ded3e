"""What an evaluation leaves: a folder of three files, whole after any kill, that is read, scored again and compared.

    evaluation.json   what was asked of whom: questions and the hashes of their files, model and its weights, template,
                      decode settings, versions, seed, roots of the pictures, counts, status (running, done)
    rows.jsonl        one line per question as it is answered, `COLUMNS` and `about`, the published row
    scores.json       score, parts with intervals, unparsed answers, failed rows

Knows: these files, the rows as a table, and how rows become scores again without a model.
Does not know: who answers (`running`), where questions come from (`questions`), the rules (`reading`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.errors import DataError, ImageError, kind_of
from workbench.json_lines import JsonLines
from workbench.resources import make_folder, write_atomic
from workbench.result_rows import failures

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

SETTINGS, ROWS, SCORES = "evaluation.json", "rows.jsonl", "scores.json"
COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "item": pl.String,
    "type": pl.String,
    "image": pl.String,
    "root": pl.String,
    "question": pl.String,
    "prompt": pl.String,
    "reference": pl.String,
    "answer": pl.String,
    "said": pl.String,
    "rule": pl.String,
    "earned": pl.Float64,
    "margin": pl.Float64,
    "seconds": pl.Float64,
    "error": pl.String,
}
"""What a row says.

`item`: rows of one item are one question in several forms, all of which must be right (CircularEval). `image` lies
below the folder that `evaluation.json` names for `root`. `prompt`: the text as sent. `answer`: as the model wrote it;
null where it failed (`error` says why) or was not asked (`rule` says why). `said`: what the rule read in it; null where
it could not. `earned`: from 0 to 1. `margin`: how much likelier the first token was than the second, in nats.
"""
NOT_ASKED = "not asked: wrong in another rotation"
"""The rule of rows that were left out, for nothing they could say would change the score."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """One row per question, in `rows` with the columns `COLUMNS` and `right` (earned all there is)."""

    rows: pl.DataFrame
    settings: Mapping[str, Any]
    """What `evaluation.json` says."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """What `scores.json` says."""
    path: Path | None = None
    """The folder; None for results that were not kept."""

    @classmethod
    def open(cls, path: Results | Path | str) -> Results:
        """A result folder, also one that is still being written; results are given back. Raises `DataError` else."""
        if isinstance(path, Results):
            return path
        if not isinstance(path, (str, Path)):
            raise DataError("results", found=kind_of(path), expected="Results, or their folder")
        folder = Path(path)
        settings = _json(folder / SETTINGS)
        if settings is None:
            fix = "`workbench evaluate ... --out FOLDER` makes one"
            raise DataError(str(path), found=f"no {SETTINGS}", expected="a result folder", fix=fix)
        return cls(table(kept_rows(folder)), settings, _json(folder / SCORES) or {}, folder)

    @property
    def model(self) -> str:
        return str(self.settings.get("model", {}).get("name", ""))

    @property
    def scorer(self) -> str:
        return str(self.settings.get("scorer", ""))

    @property
    def failures(self) -> pl.DataFrame:
        """The rows that earned less than half, the most confidently wrong first; not those that nobody was asked.

        With a column `dataset`, the folder of what was asked about, so that `wb.show` finds their pictures.
        """
        asked = pl.col("answer").is_not_null() | pl.col("error").is_not_null()
        wrong = failures(self.rows.filter(asked)).sort("margin", descending=True, nulls_last=True)
        return wrong.with_columns(dataset=pl.lit(self.settings.get("dataset"), dtype=pl.String))

    @property
    def errors(self) -> pl.DataFrame:
        """The rows that could not be asked or answered."""
        return self.rows.filter(pl.col("error").is_not_null())

    @property
    def accuracy(self) -> float:
        """The mean of what each question earned, from 0 to 1, every row alike."""
        return float(self.rows["earned"].mean() or 0.0)  # type: ignore[arg-type]

    @property
    def by_type(self) -> dict[str, float]:
        means = self.rows.drop_nulls("earned").group_by("type").agg(pl.col("earned").mean()).sort("type")
        return {row["type"]: round(row["earned"], 4) for row in means.iter_rows(named=True)}

    def picture(self, row: Mapping[str, Any]) -> PilImage:
        """The first picture of a row, of a video one from its middle. Raises `DataError` where its root is not known,
        `ImageError` where it is gone."""
        from workbench.conversation import Image
        from workbench.data.folder import resolve_inside
        from workbench.inference.attachments import attached, open_file

        roots = self.settings.get("roots", {})
        if not row["image"] or row["root"] not in roots:
            raise DataError(
                f"row {row['id']}", found="no picture that can be found", expected=f"a root of {list(roots)}"
            )
        place = str(resolve_inside(Path(roots[row["root"]]), row["image"]))
        try:
            return open_file(Image(place))
        except ImageError:  # no picture, then
            return open_file(attached(place, frames=1)[0])

    def report(self, out: Path | str | None = None, **options: Any) -> Path:
        """Write the page about these results, by default `report.html` in their folder; `options` as of `wb.report`."""
        from workbench.evaluation.report import report

        return report(self, out, **options)

    def summary(self) -> dict[str, Any]:
        """What `--json` prints: accuracy from 0 to 1, per type, the number of questions, and the kept scores."""
        fields = {"model": self.model, "scorer": self.scorer, "questions": len(self.rows)}
        told = fields | {"accuracy": round(self.accuracy, 4), "by_type": self.by_type}
        return told | {"errors": len(self.errors)} | ({"scores": dict(self.scores)} if self.scores else {})

    def save(self, path: Path | str) -> Path:
        """Every row as one JSON line."""
        write_atomic(Path(path), self.rows.write_ndjson())
        return Path(path)

    def _repr_html_(self) -> str:
        """The score, and that of each type of question as a bar."""
        from workbench.display import bars, block

        asked = {"questions": f"{len(self.rows):,}", "scorer": self.scorer or None}
        failed = {"failed": f"{len(self.errors):,}"} if len(self.errors) else {}
        by_type = {kind or "(no type)": score for kind, score in self.by_type.items()}
        facts = {**asked, **failed, "folder": self.path}
        return block(self.model, facts, bars({"all": self.accuracy, **by_type}), note="mean of what was earned, 0 to 1")

    def __str__(self) -> str:
        from workbench.evaluation.scores import told

        if self.scores:
            return f"{self.model}: {told(self.scores)}"
        lines = [f"{self.model}: {self.accuracy:.3f} of {len(self.rows):,} questions right"]
        return "\n".join(lines + [f"  {kind:<10} {value:.3f}" for kind, value in self.by_type.items()])


def table(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a table, with `right`."""
    frame = pl.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], schema=COLUMNS)
    return frame.with_columns((pl.col("earned") >= 1).alias("right"))


def kept_rows(folder: Path) -> list[Row]:
    """Every row of a folder once: of two with one id (a row that failed and was asked again) the later."""
    return list({row["id"]: row for row in JsonLines(folder / ROWS).rows() if "id" in row}.values())


class ResultFolder:
    """The one writer of a result folder: settings first, then rows as they come, scores last."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lines = JsonLines(self.path / ROWS)
        self.settings: dict[str, Any] = {}

    def begin(self, settings: Mapping[str, Any], fixed: Iterable[str]) -> list[Row]:
        """Start, or go on: gives the rows that are there already.

        fixed: the names in `settings` that must be what they were. Raises `DataError` where one is not, or where the
        folder holds something else.
        """
        before = _json(self.path / SETTINGS)
        if before is None:
            self.check_free()
        else:
            self._check_same(before, settings, fixed)
        make_folder(self.path)
        self.settings = {**settings, "started": (before or settings).get("started"), "status": "running"}
        self._write(SETTINGS, self.settings)
        return kept_rows(self.path)

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows; they are on the disk when this returns."""
        for row in rows:
            self._lines.append(row)
        self._lines.sync()

    def finish(self, scores: Mapping[str, Any], **more: Any) -> Results:
        """Write the scores, and that all is done."""
        self._lines.close()
        self._write(SCORES, scores)
        self.settings |= {**more, "status": "done"}
        self._write(SETTINGS, self.settings)
        return Results(table(kept_rows(self.path)), self.settings, scores, self.path)

    def close(self) -> None:
        self._lines.close()

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def check_free(self) -> None:
        """Raise `DataError` where something else than results lies in the way."""
        if (self.path / SETTINGS).is_file():
            return
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            found = "a file" if self.path.is_file() else "a folder with other things in it"
            raise DataError(str(self.path), found=found, expected="a new folder for the results", fix="choose another")

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any], fixed: Iterable[str]) -> None:
        plain = json.loads(json.dumps(dict(now)))
        for name in fixed:
            if before.get(name) != plain.get(name):
                raise DataError(
                    str(self.path),
                    found=f"answers under another setting ({changed(before.get(name), plain.get(name), name)})",
                    expected="the same questions to the same model, asked alike",
                    fix="give --out another folder",
                )


def changed(before: Any, now: Any, name: str) -> str:
    """Where two settings differ first, in a few words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            if before.get(key) != now.get(key):
                return changed(before.get(key), now.get(key), f"{name}.{key}")
    return f"{name}: {_short(before)} there, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(str(path), found=f"text that is no JSON ({error})", expected="a file that we wrote") from error
