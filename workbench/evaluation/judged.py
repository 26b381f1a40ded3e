"""The benchmarks that a judge model scores, and the way from files of answers to their scores.

Knows: one `JudgedBenchmark` per name, with the published files it needs.
Does not know: their prompts and rules (`llava_bench.py`, `mm_vet.py`), or how a judge is asked (`judges.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Message
from workbench.errors import DataError
from workbench.evaluation import llava_bench, mm_vet
from workbench.evaluation.judged_files import Asking, Row, answers_of, question_id
from workbench.evaluation.judges import Judge, Reply, ask, judge_name
from workbench.evaluation.pictures import Pictures
from workbench.evaluation.private import kept_anew
from workbench.evaluation.reading import JudgeRules
from workbench.evaluation.results import Results
from workbench.evaluation.score import Score
from workbench.evaluation.tally import Tally
from workbench.instruct.limits import Budget

if TYPE_CHECKING:
    from workbench.evaluation.task import Evaluation

LONGEST = 1024
"""Tokens of an answer at most, as LLaVA's `model_vqa.py` has it."""
REPLIES = "judged.sqlite"
"""Where a judge's replies are kept, beside the answers unless another file is named."""


@dataclass(frozen=True)
class JudgedBenchmark:
    """A benchmark whose answers a model judges."""

    name: str
    title: str
    measure: str
    files: str
    source: str
    questions: Callable[[Sequence[Path]], list[Row]]
    """The published files -> rows with question_id, image, question and category."""
    score: Callable[[Sequence[Path], Mapping[str, str], Asking, Container[str] | None], Tally]
    """Published files, answers by id, how the judge is asked, and which questions count (None: all)."""
    suffix: str = ""
    """Nothing is put after the question."""


JUDGED: dict[str, JudgedBenchmark] = {
    "llavabench": JudgedBenchmark(
        "llavabench",
        "LLaVA-Bench-in-the-wild",
        "answers' mean as percent of the references', by a judge",
        "questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/; and rule.json",
        "Hub dataset liuhaotian/llava-bench-in-the-wild; GitHub haotian-liu/LLaVA, llava/eval/table",
        llava_bench.questions,
        llava_bench.score,
    ),
    "mmvet": JudgedBenchmark(
        "mmvet",
        "MM-Vet",
        "mean correctness, by a judge",
        "mm-vet.json, images/; and mm-vet_evaluator.py, whose prompt is read",
        "GitHub yuweihao/MM-Vet, mm-vet.zip and the repository",
        mm_vet.questions,
        mm_vet.score,
    ),
}


def score_judged(
    benchmark: str,
    predictions: Path | str,
    references: Path | str | Sequence[Path | str],
    judge: Judge,
    *,
    store: Path | str | None = None,
    budget: Budget | None = None,
    prices: str | Path | None = None,
) -> Score:
    """Score a file of answers by a judge model: `llavabench` or `mmvet`.

    `references`: the published files, or folders that hold them. Every reply of the judge is kept in `store`, by
    default `judged.sqlite` beside the answers, and never paid for twice. Raises `DataError` for a file that is missing
    or answers to none of the questions.
    """
    if benchmark not in JUDGED:
        raise DataError("judge", found=f"benchmark {benchmark!r}", expected=f"one of {', '.join(JUDGED)}")
    file = Path(predictions)
    answers = answers_of(file)
    kept = Path(store) if store else (file if file.is_dir() else file.parent) / REPLIES
    asking = _asking(judge, kept, budget=budget, prices=prices)
    found = JUDGED[benchmark].score(_paths(references), answers, asking, None)
    measure, notes = JUDGED[benchmark].measure, list(found.notes)
    return Score(benchmark, found.score, found.n, found.parts, found.unparsed, measure, notes=notes)


def _paths(given: Path | str | Sequence[Path | str]) -> list[Path]:
    return [Path(one) for one in ([given] if isinstance(given, (str, Path)) else given)]


def _asking(judge: Judge, store: Path, **more: Any) -> Asking:
    def asking(questions: Mapping[str, Conversation], options: SamplingOptions) -> dict[str, Reply]:
        return ask(judge, questions, store, options=options, **more)[0]

    return asking


# --- asked of a model here ----------------------------------------------------------------------------------------


def read_judged(benchmark: str, data: Path | str | Sequence[Path | str], images: Path | str | None) -> Evaluation:
    """The published questions as an evaluation. Raises `DataError` for a file or the pictures' folder missing."""
    from workbench.evaluation.task import Evaluation

    paths = _paths(data)
    chosen = JUDGED[benchmark]
    if not paths:
        fix = f"give --data FILE...: {chosen.files} ({chosen.source})"
        raise DataError(f"benchmark {benchmark}", found="no data", expected="its published files", fix=fix)
    rows = chosen.questions(paths)
    pictures = Pictures(images or (paths[0] if paths[0].is_dir() else paths[0].parent))
    asked = [_conversation(row, pictures) for row in rows]
    settings = {"benchmark": benchmark, "data": [str(path.absolute()) for path in paths]}
    rules = JudgeRules(benchmark, chosen.measure)
    return Evaluation(benchmark, asked, rules, LONGEST, pictures.resolve, settings, pictures.roots)


def _conversation(row: Row, pictures: Pictures) -> Conversation:
    turns = (
        Message("user", (*pictures.of(row), row["question"])),
        Message("assistant", (str(row["reference"] or ""),)),
    )
    about = {name: row[name] for name in ("question_id", "category")}
    return Conversation(str(row["question_id"]), turns, metadata={"type": row["category"], "about": about})


def judged_results(results: Results, judge: Judge) -> Results:
    """The same answers with what the judge says they earn, in their folder too. A failed row is an empty answer."""
    if results.path is None:
        raise DataError("judge", found="results that are not kept", expected="a folder for the judge's replies")
    benchmark, data = str(results.settings["name"]), results.settings["questions"]["data"]
    answers = {question_id({"id": name}): answer or "" for name, answer in results.rows.select("id", "answer").rows()}
    asked = set(answers)  # with a limit not all of them
    found = JUDGED[benchmark].score(_paths(data), answers, _asking(judge, results.path / REPLIES), asked)
    earned = {question_id(item.about): value for item, value in found.marked}
    scored = {"name": benchmark, "score": round(found.score, 4), "measure": JUDGED[benchmark].measure, "n": found.n}
    parts = {name: {key: round(value, 4) for key, value in part.items()} for name, part in found.parts.items()}
    errors = results.rows["error"].count()
    scored |= {"unparsed": found.unparsed, "errors": errors, "parts": parts, "notes": list(found.notes)}
    rows = {
        name: {"earned": earned.get(question_id({"id": name})), "rule": "judged"}
        for name in results.rows["id"].to_list()
    }
    return kept_anew(results, rows, scored, judge={"name": judge_name(judge)})
