"""Scores: questions asked of a model, answers made elsewhere, results compared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import resources
from workbench.commands.common import AddVerb, add_json, add_loading, add_model, positive, show
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.evaluation.results import Results


def _evaluate(given: argparse.Namespace) -> None:
    out = Path(given.out) if given.out else None
    rows_only = out is not None and out.suffix in (".jsonl", ".ndjson")
    if out is not None:  # told before the questions are asked, not after
        _check_out(out, rows_only)
    if given.report:
        resources.check_writable(given.report)
    scorer = "judge" if given.judge and given.scorer == "normalised" else given.scorer
    if scorer == "judge" and not given.judge:  # before a model is loaded
        fix = "--judge MODEL@URL, local:MODEL or a YAML file"
        raise WorkbenchError("--scorer judge", found="no judge", expected="the model that judges", fix=fix)
    results = asked_of(
        given.model, given.dataset, None if given.split == "all" else given.split, given.tasks, scorer, given.limit,
        load=given.load, device=given.device, data=given.data, images=given.images, prompts=given.prompts,
        frames=given.frames, max_tokens=given.max_tokens, reuse=not given.no_reuse,
        likelihood=given.likelihood, out=None if rows_only else out,
        judge=given.judge, rubric=given.rubric, slices=given.slices or (),
    )  # fmt: skip
    if out is not None and rows_only:
        results.save(out)
    show(given, "\n".join([_told(results), *_seen(results, given.slices, given.report)]), results.summary())


def _check_out(out: Path, rows_only: bool) -> None:
    from workbench.evaluation.results import ResultFolder

    if not rows_only:
        ResultFolder(out).check_free()
    elif out.is_dir():
        raise WorkbenchError(str(out), found="a folder", expected="a file to write, or a name without .jsonl")
    else:
        resources.check_writable(out)


def _told(results: Results) -> str:
    lines = [str(results)]
    if len(results.errors):
        row = results.errors.row(0, named=True)
        lines.append(f"first failure: {row['id']}: {row['error']}")
    return "\n".join([*lines, f"kept in {results.path}"] if results.path else lines)


def _seen(results: Results, by: Sequence[str] | None, page: str | None) -> list[str]:
    """The slices that were asked for, and the page."""
    from workbench.evaluation.report import asked_dataset, report
    from workbench.evaluation.slice_scores import slices

    told = [str(slices(results, asked_dataset(results, None), by))] if by else []
    return [*told, f"written: {report(results, page, by=by or ('type',))}"] if page else told


def asked_of(
    model: str, dataset: str, split: str | None = "test", tasks: Sequence[str] = ("question",),
    scorer: str = "normalised", limit: int | None = None, *, load: str | None = None, device: str = "auto", **more: Any,
) -> Results:  # fmt: skip
    """The held-out conversations of a dataset, or a benchmark's questions, asked of a model."""
    from workbench.evaluation.task import evaluate, questions_of
    from workbench.inference.opening import open_model

    given = {key: more.pop(key) for key in ("data", "images", "prompts", "frames") if more.get(key) is not None}
    asked = questions_of(dataset, split=split, tasks=tasks, scorer=scorer, limit=limit, **given)
    return evaluate(open_model(model, load=load, device=device), asked, **more)


def _score(given: argparse.Namespace) -> None:
    if given.predictions is None:
        from workbench.evaluation.scores import score_again

        results = score_again(given.benchmark, given.scorer)
        show(given, results, results.summary())
        return
    from workbench.evaluation.benchmarks import JUDGED
    from workbench.evaluation.judged import score_judged
    from workbench.evaluation.score import score

    if given.benchmark in JUDGED:
        if not given.judge:
            fix = "--judge MODEL@URL, local:MODEL or a YAML file"
            raise WorkbenchError(given.benchmark, found="no judge", expected="the model that judges", fix=fix)
        scored = score_judged(given.benchmark, given.predictions, given.references, given.judge)
    else:
        scored = score(given.benchmark, given.predictions, given.references)
    show(given, scored, scored.summary())


def _diff(given: argparse.Namespace) -> None:
    from workbench.evaluation.diff import diff

    found = diff(given.first, given.second)
    show(given, found, found.summary())


def _benchmarks(given: argparse.Namespace) -> None:
    from workbench.evaluation.benchmarks import listing, table

    show(given, table(), listing())


def add_judge(add: Callable[..., Any]) -> None:
    told = "a model that scores answers: MODEL@URL, local:MODEL or a YAML file; its replies are kept"
    add("--judge", metavar="JUDGE", help=told)


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "evaluate",
        _evaluate,
        "Ask a model the held-out questions of a dataset, or a benchmark's, and score its answers, part by part.",
        "evaluate runs/mine data/holiday --out results/holiday",
        "evaluate runs/mine pope --data coco/ --images val2014/ --out results/pope",
        "evaluate runs/mine data/holiday --slices type tag:night measure:brightness --report holiday.html",
        "evaluate runs/mine data/holiday --tasks detail --judge gpt-4o@https://api.openai.com/v1 --out results/detail",
        "evaluate gpt-4o-mini@https://api.openai.com/v1 mmbench --data mmbench_dev_20230712.tsv --out results/mmbench",
    ).add_argument
    add_model(add)
    add("dataset", metavar="DATASET|BENCHMARK", help="dataset folder, or a name that `workbench benchmarks` lists")
    add("--data", nargs="+", metavar="FILE", help="a benchmark's published files, or their folder")
    add(
        "--images",
        metavar="FOLDER",
        help="a benchmark's pictures, if the rows do not bring them (default: by the data)",
    )
    told = "llava: worded as LLaVA's evaluation does; question: the question and its options alone"
    add("--prompts", default="llava", choices=("llava", "question"), help=told)
    told = (
        "of a benchmark's videos, as pictures (default: the whole video where the model reads it, else the middle one)"
    )
    add("--frames", type=positive, metavar="N", help=told)
    told = "of a dataset (default: %(default)s)"
    add("--split", default="test", choices=("train", "val", "test", "all"), help=told)
    add(
        "--tasks",
        nargs="+",
        default=["question"],
        metavar="TASK",
        help="conversations of a dataset (default: question); of several turns the last question is asked",
    )
    told = "how a dataset's answers are compared: exact, normalised, choice, numeric, relaxed, iou or judge"
    add("--scorer", default="normalised", help=f"{told} (default: %(default)s)")
    add_judge(add)
    add("--rubric", metavar="FILE", help="a Jinja file of your own for the judge, with {{ answer }} in it")
    told = "scores by these too: type, task, split, tag[:NAME], class[:NAME], measure:NAME"
    add("--slices", nargs="+", metavar="SLICE", help=told)
    add("--report", metavar="FILE", help="write a page with the failures and their pictures")
    add("--limit", type=positive, metavar="N", help="the first N only")
    add("--max-tokens", type=positive, metavar="N", help="tokens of an answer at most")
    add("--no-reuse", action="store_true", help="one row after the other, nothing shared: slow, the same answers")
    add("--likelihood", action="store_true", help="take the likeliest option instead of what the model would write")
    add_loading(add)
    told = "folder that keeps everything and goes on where it was; or FILE.jsonl for the rows alone"
    add("--out", metavar="RESULTS", help=told)
    add_json(add)

    add = verb(
        "score",
        _score,
        "Score answers that were made elsewhere, by a benchmark's own rule and without any model; or results anew.",
        "score seedbench GPT-4V.json",
        "score pope answers.jsonl --references coco/ llava_pope_test.jsonl",
        "score mmbench llava-v1.5-13b.xlsx --json",
        "score mmvet answers.json --references mm-vet/ mm-vet_evaluator.py --judge gpt-4o@https://api.openai.com/v1",
        "score results/pope",
    ).add_argument
    add("benchmark", metavar="BENCHMARK|RESULTS", help="a name that `workbench benchmarks` lists, or a result folder")
    told = "json, jsonl, xlsx, tsv, csv, parquet or txt; or a folder of them"
    add("predictions", metavar="PREDICTIONS", nargs="?", help=told)
    told = "files or folders of what is right, if the predictions do not bring it; question files too"
    add("--references", nargs="+", default=[], metavar="FILE", help=told)
    add("--scorer", help="another way to compare the answers of a result folder")
    add_judge(add)
    add_json(add)

    add = verb(
        "diff",
        _diff,
        "Compare two results: which is better and how surely, what was won and lost, which settings differ.",
        "diff results/before results/after",
        "diff results/shared results/plain --json",
    ).add_argument
    add("first", metavar="A", help="result folder")
    add("second", metavar="B", help="result folder")
    add_json(add)

    add = verb("benchmarks", _benchmarks, "List the benchmarks and the files each needs.", "benchmarks").add_argument
    add_json(add)
