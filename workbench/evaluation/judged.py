"""The benchmarks that a judge model scores, and the way from files of answers to their scores.

Knows: one `JudgedBenchmark` per name, with the published files it needs.
Does not know: their prompts and rules (`llava_bench.py`, `mm_vet.py`), or how a judge is asked (`judges.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation
from workbench.errors import DataError
from workbench.evaluation import llava_bench, mm_vet
from workbench.evaluation.judged_files import Asking, Row, answers_of
from workbench.evaluation.judges import Judge, Reply, ask
from workbench.evaluation.score import Score
from workbench.evaluation.tally import Tally
from workbench.instruct.limits import Budget

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
    score: Callable[[Sequence[Path], Mapping[str, str], Asking], Tally]
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
    paths = [Path(one) for one in ([references] if isinstance(references, (str, Path)) else references)]
    file, chosen = Path(predictions), JUDGED[benchmark]
    answers = answers_of(file)
    kept = Path(store) if store else (file if file.is_dir() else file.parent) / REPLIES

    def asking(questions: Mapping[str, Conversation], options: SamplingOptions) -> dict[str, Reply]:
        return ask(judge, questions, kept, options=options, budget=budget, prices=prices)[0]

    found = chosen.score(paths, answers, asking)
    notes = list(found.notes)
    return Score(benchmark, found.score, found.n, found.parts, found.unparsed, chosen.measure, notes=notes)
