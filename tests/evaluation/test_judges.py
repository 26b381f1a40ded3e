"""Judges over HTTP: answers are scored, pairs shown in both orders, published benchmarks asked word for word."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as PILImage

sys.path.insert(0, str(Path(__file__).parents[1]))
from teacher_server import TeacherServer, serving  # noqa: E402

from tests.videos import moving  # noqa: E402
from workbench.chat_model import ScriptedModel  # noqa: E402
from workbench.conversation import Conversation, Image, Message  # noqa: E402
from workbench.data.dataset import Dataset  # noqa: E402
from workbench.errors import DataError  # noqa: E402
from workbench.evaluation.judged import score_judged  # noqa: E402
from workbench.evaluation.judges import judge_answers  # noqa: E402
from workbench.evaluation.llava_bench import read_pair  # noqa: E402
from workbench.evaluation.mm_vet import read_correctness  # noqa: E402
from workbench.evaluation.preferences import prefer  # noqa: E402
from workbench.evaluation.results import Results  # noqa: E402
from workbench.evaluation.scores import score_again  # noqa: E402
from workbench.evaluation.task import evaluate  # noqa: E402
from workbench.instruct.limits import Budget  # noqa: E402


@pytest.fixture
def judge() -> Iterator[tuple[TeacherServer, str]]:
    with serving(faults=()) as (server, url):
        yield server, f"gpt-4@{url}"


def rows(answers: dict[str, str]) -> pl.DataFrame:
    made = [
        {"id": name, "type": "open", "image": None, "root": None, "question": f"Question {name}?"}
        | {"reference": "a red star", "answer": answer, "earned": 0.0}
        for name, answer in answers.items()
    ]
    return pl.DataFrame(made, schema_overrides={"image": pl.String, "root": pl.String})


def scored(score: int) -> str:
    return json.dumps({"reason": "because", "score": score})


# --- answers against references --------------------------------------------------------------------------------------


def test_a_judge_scores_answers_and_its_failures_are_in_no_average(judge: Any, tmp_path: Path) -> None:
    server, url = judge
    replies = {"good answer": scored(10), "half answer": scored(4), "odd answer": "I would rather not."}
    server.reply = lambda prompt: next(text for name, text in replies.items() if name in prompt)
    table = rows({"a": "good answer", "b": "half answer", "c": "odd answer"})
    told = judge_answers(table, url, store=tmp_path / "replies.sqlite")
    assert told.rows["earned"].to_list() == [1.0, pytest.approx(1 / 3), None]
    assert told.failed == 1 and "no score from 1 to 10 in 'I would rather not.'" in str(told)
    assert "10 of 10. because" in told.rows["rule"][0] and "no score" in told.rows["rule"][2]
    asked = json.dumps(server.requests[0])
    assert "a red star" in asked and "Question" in asked and server.requests[0]["temperature"] == 0
    judge_answers(table, url, store=tmp_path / "replies.sqlite")
    assert len(server.requests) == 3, "nothing is paid for twice"


def test_a_budget_that_ends_leaves_the_rest_without_a_score(judge: Any, tmp_path: Path) -> None:
    server, url = judge
    server.reply = lambda prompt: scored(7)
    told = judge_answers(rows(dict.fromkeys("abcde", "x")), url, store=tmp_path / "r.sqlite", budget=Budget(calls=2))
    assert told.failed == 3 and "budget of 2 calls" in told.rows["rule"][4]


def test_a_rubric_of_your_own_and_rules_as_judge(judge: Any, tmp_path: Path) -> None:
    server, url = judge
    server.reply = lambda prompt: scored(1)
    own = tmp_path / "own.jinja"
    own.write_text("My rubric. {{ question }} {{ reference }} {{ answer }}")
    judge_answers(rows({"a": "x"}), url, rubric=own, store=tmp_path / "r.sqlite")
    assert "My rubric. Question a? a red star x" in json.dumps(server.requests[0])
    own.write_text("My rubric.")
    with pytest.raises(DataError, match="{{ answer }}"):
        judge_answers(rows({"a": "x"}), url, rubric=own, store=tmp_path / "r.sqlite")
    with pytest.raises(DataError, match="MODEL@URL"):
        judge_answers(rows({"a": "x"}), "rules", store=tmp_path / "r.sqlite")
    with pytest.raises(DataError, match="no place for its replies"):
        judge_answers(rows({"a": "x"}), url)


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    """Two pictures with a held-out question about each."""
    (tmp_path / "mine" / "images").mkdir(parents=True)
    names = ["red.png", "blue.png"]
    for name in names:
        PILImage.new("RGB", (32, 32), name.split(".")[0]).save(tmp_path / "mine" / "images" / name)
    table = pl.DataFrame({"id": names, "path": names, "status": ["ok"] * 2, "split": ["test"] * 2, "hash": names})
    dataset = Dataset.create(tmp_path / "mine", name="mine", images=table)
    dataset.write_conversations(_question(name) for name in names)
    return dataset


def _question(name: str) -> Conversation:
    turns = Message("user", (Image(name), "Which color?")), Message("assistant", name.split(".")[0])
    return Conversation(f"q-{name}", turns, "test", "question", metadata={"type": "color"})


def test_answers_about_a_video_are_judged_by_what_is_said(judge: Any, pictures: Dataset, tmp_path: Path) -> None:
    server, url = judge
    server.reply = lambda prompt: scored(10)
    moving(tmp_path / "mine" / "images" / "clip.mp4", 5)
    shown = pl.Series("image", ["clip.mp4", "red.png"])
    table = rows({"a": "film", "b": "still"}).with_columns(shown, root=pl.lit("images"))
    told = judge_answers(table, url, pictures, store=tmp_path / "replies.sqlite")
    assert told.rows["earned"].to_list() == [1.0, 1.0]
    seen = {"film" in json.dumps(one): "image_url" in json.dumps(one) for one in server.requests}
    assert seen == {True: False, False: True}
    other = table.with_columns(answer=pl.lit("another"))
    assert prefer(table, other, url, pictures, store=tmp_path / "p.sqlite").outcome.failed == {}


def test_an_evaluation_with_a_judge_keeps_its_scores_and_its_replies(
    judge: Any, pictures: Dataset, tmp_path: Path
) -> None:
    server, url = judge
    server.reply = lambda prompt: scored(10) if "a red one" in prompt else scored(1)
    model = ScriptedModel(lambda asked: "a red one")
    out = tmp_path / "results"
    made = evaluate(model, pictures, judge=url, slices=["type"], out=out)
    assert made.scores["score"] == 100.0 and made.scores["slices"][0]["slice"] == "type color"
    assert all("image_url" in json.dumps(one) for one in server.requests), "a judge is shown the picture"
    kept = Results.open(out)
    assert kept.scorer == "judge" and kept.settings["judge"]["name"] == url and kept.rows["earned"].to_list() == [1, 1]
    assert (out / "replies.sqlite").is_file()
    again = evaluate(model, pictures, judge=url, out=out)
    assert len(model.asked) == 2 and len(server.requests) == 2 and again.scores["score"] == 100.0
    with pytest.raises(DataError, match="a scorer that needs no model"):
        score_again(out)
    assert score_again(out, "exact").scores["score"] == 0.0


def test_a_judge_that_fails_always_is_an_error_and_sometimes_a_note(
    judge: Any, pictures: Dataset, tmp_path: Path
) -> None:
    server, url = judge
    server.reply = lambda prompt: "no"
    with pytest.raises(DataError, match="no score for any answer"):
        evaluate(ScriptedModel(lambda asked: "red"), pictures, judge=url, out=tmp_path / "none")
    server.reply = lambda prompt: scored(10) if "blue" in prompt.split("Reference")[1] else "no"
    made = evaluate(ScriptedModel(lambda asked: "something"), pictures, judge=url, out=tmp_path / "one")
    assert made.scores["score"] == 100.0 and made.scores["n"] == 1
    assert "failed at 1 answer" in " ".join(made.scores["notes"])


# --- pairs --------------------------------------------------------------------------------------------------------


def _longer(prompt: str) -> str:
    """Prefers the longer answer, wherever it stands."""
    first, second = (prompt.split(f"Answer {n}, between")[1].split("====")[2] for n in (1, 2))
    better = "1" if len(first) > len(second) else "2" if len(second) > len(first) else "equal"
    return json.dumps({"reason": "", "better": better})


def test_a_preference_counts_only_if_it_stays_when_the_two_change_places(judge: Any, tmp_path: Path) -> None:
    server, url = judge
    server.reply = _longer
    first = rows({"a": "long answer", "b": "short", "c": "same", "d": "odd"})
    second = rows({"a": "short", "b": "long answer", "c": "same", "d": "odd"})
    told = prefer(first, second, url, store=tmp_path / "r.sqlite")
    assert told.table["better"].to_list() == ["first", "second", "equal", "equal"] and told.p == 1.0
    assert len(server.requests) == 8
    server.reply = lambda prompt: json.dumps({"better": "1"})
    biased = prefer(first, second, url, store=tmp_path / "biased.sqlite")
    assert biased.count("order") == 4 and biased.count("first") == biased.count("second") == 0
    server.reply = lambda prompt: "Both are fine."
    lost = prefer(first, second, url, store=tmp_path / "lost.sqlite")
    assert lost.summary()["failed"] == 4 and "no verdict in 'Both are fine.'" in str(lost)


# --- LLaVA-Bench-in-the-wild --------------------------------------------------------------------------------------

RULE = {f"llava_bench_{kind}": {"role": "Helper", "prompt": f"Rate {kind}.\n1 to 10."} for kind in ("conv", "detail")}
"""In the shape of LLaVA's rule.json, in words of our own."""


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()
    kinds = ["conv", "detail", "conv"]
    asked = [{"question_id": n, "image": f"{n}.jpg", "category": kinds[n], "text": f"What is {n}?"} for n in range(3)]
    jsonl(folder / "questions.jsonl", asked)
    jsonl(folder / "context.jsonl", [{"id": n, "image": f"{n}.jpg", "caption": [f"A {n}.", "Big."]} for n in range(3)])
    given = [{"question_id": n, "answer_id": f"a{n}", "text": f"reference {n}"} for n in range(3)]
    jsonl(folder / "answers_gpt4.jsonl", given)
    (folder / "rule.json").write_text(json.dumps(RULE))
    jsonl(tmp_path / "mine.jsonl", [{"question_id": n, "prompt": "q", "text": f"mine {n}"} for n in range(3)])
    return folder


def test_llava_bench_is_asked_word_for_word_and_in_both_orders(judge: Any, bench: Path) -> None:
    server, url = judge
    server.reply = lambda prompt: "8 6\nBecause."
    told = score_judged("llavabench", bench.parent / "mine.jsonl", bench, url)
    texts = {request["messages"][1]["content"] for request in server.requests}
    assert len(texts) == 6
    assert (
        "[Context]\nA 0.\nBig.\n\n[Question]\nWhat is 0?\n\n[Helper 1]\nreference 0\n\n[End of Helper 1]\n\n"
        "[Helper 2]\nmine 0\n\n[End of Helper 2]\n\n[System]\nRate conv.\n1 to 10.\n\n"
    ) in texts
    one = server.requests[0]
    assert (one["temperature"], one["max_tokens"]) == (0.2, 1024)
    assert one["messages"][0]["content"].startswith("You are a helpful and precise assistant for checking")
    assert told.score == 75.0 and told.n == 3, "6 of 8 with the reference first, as published"
    assert told.parts["all"]["reference"] == 80 and told.parts["all, swapped"]["score"] == pytest.approx(400 / 3)
    assert told.parts["all, both orders"]["score"] == 100.0 and set(told.parts) >= {"conv", "detail"}
    assert "swapped: +58.3" in str(told)
    score_judged("llavabench", bench.parent / "mine.jsonl", bench, url)
    assert len(server.requests) == 6, "kept replies are not paid for again"


def test_a_review_without_scores_is_told_and_in_no_average(judge: Any, bench: Path) -> None:
    server, url = judge
    first = "[Helper 1]\\nreference 1"
    server.reply = lambda prompt: "Both are good." if first in prompt else "10, 5" if "reference" in prompt else ""
    told = score_judged("llavabench", bench.parent / "mine.jsonl", bench, url)
    assert told.n == 2 and told.unparsed == 1 and told.score == 50.0
    assert "failed at 1 question(s) as published and 0 swapped" in str(told) and "Both are good" in str(told)
    assert "detail" not in told.parts


@pytest.mark.parametrize(
    ("review", "pair"),
    [
        ("8 7\nA", (8, 7)),
        ("8,7", (8, 7)),
        ("8.5 9", (8.5, 9)),
        ("8, 7", (8, 7)),
        ("8", None),
        ("8 7 6", None),
        ("Scores: 8 7", None),
        ("11 7", None),
        ("nan 7", None),
        ("", None),
    ],
)
def test_scores_are_read_in_the_first_line(review: str, pair: tuple[float, float] | None) -> None:
    assert read_pair(review) == pair


@pytest.mark.parametrize("gone", ["questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "rule.json"])
def test_a_published_file_that_is_missing_is_named(judge: Any, bench: Path, gone: str) -> None:
    (bench / gone).unlink()
    with pytest.raises(DataError, match=f"no {gone}"):
        score_judged("llavabench", bench.parent / "mine.jsonl", bench, judge[1])
    assert judge[0].requests == []


# --- MM-Vet -----------------------------------------------------------------------------------------------------------

EVALUATOR = 'import sys\nprompt = """Judge it. <AND> means all.\n\nQuestion | Truth | Prediction | Correctness\n"""\n'


@pytest.fixture
def vet(tmp_path: Path) -> Callable[[dict[str, str]], tuple[Path, list[Path]]]:
    asked = {
        f"v1_{n}": {"imagename": f"v1_{n}.png", "question": f"What {n}?", "answer": "-1<AND>-5", "capability": names}
        for n, names in enumerate([["ocr", "math"], ["rec"], ["rec", "ocr"]])
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(asked))
    (tmp_path / "mm-vet_evaluator.py").write_text(EVALUATOR + "raise SystemExit('never run')\n")

    def answered(answers: dict[str, str]) -> tuple[Path, list[Path]]:
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        return tmp_path / "answers.json", [tmp_path / "mm-vet.json", tmp_path / "mm-vet_evaluator.py"]

    return answered


def test_mm_vet_is_asked_by_its_own_prompt_and_again_where_no_number_comes(judge: Any, vet: Any) -> None:
    server, url = judge
    server.reply = lambda prompt: "0.5 |" if "x = 0" in prompt else "1.0" if "digit" in prompt else "maybe"
    told = score_judged("mmvet", *vet({"v1_0": "x = 0", "v1_1": "x = 1", "v1_2": "x = 2"}), url)
    start = (
        "Judge it. <AND> means all.\n\nQuestion | Truth | Prediction | Correctness\n\nWhat 0? | -1 <AND> -5 | x = 0 | "
    )
    texts = [request["messages"][0]["content"] for request in server.requests]
    assert (
        start in texts
        and sum(text.endswith("\nPredict the correctness of the answer (digit): ") for text in texts) == 2
    )
    assert all((one["max_tokens"], one["temperature"]) == (3, 0) for one in server.requests)
    assert told.score == pytest.approx(250 / 3) and told.n == 3 and not told.unparsed
    scores = {name: part["score"] for name, part in told.parts.items()}
    assert scores == {"ocr": 75.0, "rec": 100.0, "math": 50.0, "math+ocr": 50.0, "ocr+rec": 100.0}


def test_what_mm_vets_judge_never_says_is_in_no_average(judge: Any, vet: Any) -> None:
    server, url = judge
    server.reply = lambda prompt: "1.0" if "x = 0" in prompt else "maybe"
    told = score_judged("mmvet", *vet({"0": "x = 0", "1": "x = 1"}), url)
    assert told.score == 100.0 and told.n == 1 and told.unparsed == 2
    assert len(server.requests) == 1 + 2 * 5
    assert {one["temperature"] for one in server.requests} == {0, 0.5, 1, 1.5}
    assert "1 question(s) have no answer" in str(told) and "failed at 2" in str(told)


def test_a_number_is_read_at_the_beginning_only() -> None:
    assert [read_correctness(text) for text in ("0.4", "1", "0.7 | x", "1.1", "-0.1", "about 1", "nan")] == [
        0.4, 1.0, 0.7, None, None, None, None,
    ]  # fmt: skip


def test_answers_to_other_questions_and_unknown_benchmarks_are_refused(judge: Any, vet: Any) -> None:
    with pytest.raises(DataError, match="none of the questions"):
        score_judged("mmvet", *vet({"v1_9": "x"}), judge[1])
    with pytest.raises(DataError, match="llavabench, mmvet"):
        score_judged("pope", *vet({"v1_9": "x"}), judge[1])


# --- a model here, then the judge -------------------------------------------------------------------------------------


def test_a_judged_benchmark_is_asked_of_a_model_here_and_kept(judge: Any, vet: Any, tmp_path: Path) -> None:
    server, url = judge
    server.reply = lambda prompt: "1.0" if "What 1?" in prompt else "0.0"
    files = vet({})[1]
    for number in range(3):
        PILImage.new("RGB", (16, 16), "red").save(tmp_path / f"v1_{number}.png")
    model = ScriptedModel(lambda asked: f"about {asked.messages[-1].text}")
    made = evaluate(model, "mmvet", data=files, images=tmp_path, judge=url, out=tmp_path / "results")
    assert [one.messages[-1].text for one in model.asked] == ["What 0?", "What 1?", "What 2?"], "no suffix"
    assert made.scores["score"] == pytest.approx(100 / 3, abs=1e-3) and made.scores["parts"]["rec"]["n"] == 2
    kept = Results.open(tmp_path / "results")
    assert dict(kept.rows.select("id", "earned").rows()) == {"v1_0": 0.0, "v1_1": 1.0, "v1_2": 0.0}
    assert kept.settings["judge"] == {"name": url} and len(server.requests) == 3
    evaluate(model, "mmvet", data=files, images=tmp_path, judge=url, out=tmp_path / "results")
    assert len(server.requests) == 3 and len(model.asked) == 3
    some = evaluate(model, "mmvet", data=files, images=tmp_path, judge=url, out=tmp_path / "some", limit=2)
    assert some.scores["n"] == 2 and some.scores["score"] == 50.0 and some.report().is_file()
    with pytest.raises(DataError, match="no place for its replies"):
        evaluate(model, "mmvet", data=files, images=tmp_path, judge=url)
    with pytest.raises(DataError, match="no judge"):
        evaluate(model, "mmvet", data=files, images=tmp_path)
