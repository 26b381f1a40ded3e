"""A slice has its own score and interval, the worst first; two models are told apart per slice, and only where sure."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError
from workbench.evaluation.confusion import OTHER, confusion
from workbench.evaluation.slice_scores import compare_results, slices
from workbench.evaluation.slices import check_slices
from workbench.evaluation.statistics import holm, interval
from workbench.result_rows import failures, name_of, rows_of


def row(number: int, earned: float | None, kind: str = "color", image: str | None = None, **more: object) -> dict:
    base = {"id": f"q{number}", "type": kind, "image": image or f"{number}.png", "root": "images", "question": "What?"}
    return {**base, "reference": "red", "answer": "blue", "earned": earned, **more}


def table(rows: list[dict]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


def test_the_worst_slice_stands_first_and_few_questions_last() -> None:
    rows = [row(n, float(n % 10 > 0), "easy") for n in range(100)]
    rows += [row(100 + n, float(n % 4 == 0), "hard") for n in range(40)]
    rows += [row(200 + n, 0.0, "rare") for n in range(3)]
    found = slices(table(rows))
    assert [part.name for part in found.parts] == ["type hard", "type easy", "type rare"]
    hard, easy, rare = found.parts
    assert hard.earned.mean == 0.25 and hard.below and not hard.few
    assert easy.earned.mean == 0.9 and not easy.below
    assert rare.few and "too few to say" in str(found)
    assert found.whole == interval([one["earned"] for one in rows], groups=[one["image"] for one in rows])


def test_an_interval_is_by_picture() -> None:
    """Ten questions about each of ten pictures, all right or all wrong, know as much as ten questions."""
    together = [row(n, float(n // 10 % 2), image=f"{n // 10}.png") for n in range(100)]
    alone = [row(n, float(n // 10 % 2)) for n in range(100)]
    wide, narrow = slices(table(together)).whole, slices(table(alone)).whole
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def test_what_could_not_be_scored_is_in_no_figure() -> None:
    found = slices(table([row(0, 1.0), row(1, 1.0), row(2, None)]))
    assert found.whole.mean == 1.0 and found.whole.n == 2 and found.unscored == 1
    assert "1 more could not be scored" in str(found)
    with pytest.raises(DataError, match="no answer that could be scored"):
        slices(table([row(0, None), row(1, None)]).with_columns(pl.col("earned").cast(pl.Float64)))


def test_a_question_in_several_forms_counts_as_its_worst() -> None:
    forms = [row(0, 1.0, item="a"), row(1, 0.0, item="a"), row(2, 0.0, item="a", answer=None), row(3, 1.0, item="b")]
    read = rows_of(table(forms))
    assert read.select("id", "earned").rows() == [("q1", 0.0), ("q3", 1.0)]
    assert failures(read)["answer"].to_list() == ["blue"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(tmp_path_factory.mktemp("scenes"), count=40, seed=3, planted=Planted(0, 0, 0))


def test_slices_by_class_measure_and_split(scenes: Dataset) -> None:
    images = scenes.images
    rows = table([row(n, float(n % 2), image=path) for n, path in enumerate(images["path"])])
    things = [[thing["label"] for thing in json.loads(text)] for text in images["objects"]]
    name = things[0][0]
    by_class = slices(rows, scenes, [f"class:{name}"]).parts
    assert [(one.name, one.images) for one in by_class] == [(f"class {name}", sum(name in one for one in things))]
    quarters = slices(rows, scenes.path, ["measure:brightness"]).parts
    assert [one.images for one in quarters] == [10] * 4 and len({one.name for one in quarters}) == 4
    assert {one.name.split(",")[0] for one in quarters} == {
        f"brightness {part} quarter" for part in ("lowest", "low", "high", "highest")
    }


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("clas", "did you mean class"),
        ("class:unicorn", "nothing in it; expected one of"),
        ("measure:beauty", "one of width"),
        ("tag", "no dataset"),
    ],
)
def test_a_slice_that_is_not_there_is_told(scenes: Dataset, by: str, said: str) -> None:
    rows = table([row(n, 1.0, image=path) for n, path in enumerate(scenes.images["path"])])
    with pytest.raises(DataError, match=said):
        check_slices(None if by == "tag" else scenes, [by])
    with pytest.raises(DataError, match=said):
        slices(rows, None if by == "tag" else scenes, [by])


def test_results_of_another_dataset_are_refused(scenes: Dataset) -> None:
    with pytest.raises(DataError, match="none of the 1 pictures"):
        slices(table([row(0, 1.0, image="elsewhere.png")]), scenes, ["class"])


# --- two models ---------------------------------------------------------------------------------------------------


def test_a_loss_in_one_slice_is_found_though_the_whole_is_equal() -> None:
    before = [row(n, 1.0, "old") for n in range(60)] + [row(100 + n, 0.0, "new") for n in range(60)]
    after = [row(n, float(n >= 30), "old") for n in range(60)] + [row(100 + n, float(n < 30), "new") for n in range(60)]
    told = compare_results(table(before), table(after))
    assert told.whole.difference == 0 and not told.whole.significant()
    assert [(name, n, found.difference, sure) for name, n, found, sure in told.parts] == [
        ("type old", 60, -0.5, True),
        ("type new", 60, 0.5, True),
    ]


def test_one_of_many_slices_is_not_called_better_by_chance() -> None:
    """Six right answers more in one of twenty equal slices: p = 2 / 2**6 alone, 0.6 among twenty."""
    before = [row(100 * kind + n, 0.0, f"{kind:02}") for kind in range(20) for n in range(30)]
    after = [one | {"earned": float(one["type"] == "07" and int(one["id"][1:]) % 100 < 6)} for one in before]
    told = compare_results(table(before), table(after))
    gained = next(part for part in told.parts if part[0] == "type 07")
    assert gained[2].p == pytest.approx(2 / 64) and not gained[3]
    assert holm([0.03125, *[1.0] * 19])[0] == pytest.approx(0.625)


def test_only_questions_of_both_are_compared() -> None:
    first, second = table([row(0, 1.0), row(1, 0.0), row(2, None)]), table([row(1, 1.0), row(2, 1.0), row(3, 1.0)])
    told = compare_results(first, second)
    assert (told.n, told.left_out, told.whole.better) == (1, 4, 1)
    other = second.with_columns(question=pl.lit("Another?"))
    with pytest.raises(DataError, match="no question that both answered"):
        compare_results(first, other)


# --- confusion and rows -----------------------------------------------------------------------------------------------


def test_confusion_counts_references_against_answers() -> None:
    said = [("Red.", "red"), ("red", "the blue"), ("blue", "blue"), ("blue", ""), ("blue", "a blue thing")]
    rows = [row(n, 0.0, reference=reference, answer=answer) for n, (reference, answer) in enumerate(said)]
    (found,) = confusion(table(rows))
    assert found.references == ("blue", "red") and found.said == ("blue", "red", "(nothing)", "blue thing")
    assert found.counts == ((1, 0, 1, 1), (1, 1, 0, 0))
    assert "blue thing" in str(found)


def test_a_type_with_too_many_references_has_no_table_and_rare_answers_share_one_column() -> None:
    many = [row(n, 0.0, "free", reference=f"thing {n}") for n in range(13)]
    rare = [row(100 + n, 0.0, "color", reference=["red", "blue"][n % 2], answer=f"word {n}") for n in range(20)]
    (found,) = confusion(table(many + rare))
    assert found.type == "color" and found.said[-1] == OTHER and len(found.said) == 13
    assert sum(map(sum, found.counts)) == 20


def test_rows_are_read_from_a_folder_and_what_is_none_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    lines = [row(0, 0.0), row(1, 1.0), row(0, 1.0)]  # asked again: the last counts
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"id": "torn')
    assert rows_of(folder).sort("id")["earned"].to_list() == [1.0, 1.0] and name_of(folder) == "tuned"
    with pytest.raises(DataError, match="no results there"):
        rows_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no scored answers"):
        rows_of(pl.DataFrame({"id": ["a"]}))
