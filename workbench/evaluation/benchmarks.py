"""The benchmarks: what each asks, which files it needs and where these come from.

Knows: one `Benchmark` per name with its measure, prompt suffix and rule.
Does not know: how files are read and scored (`score`); models. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.evaluation import rules_choice, rules_free, rules_yes_no
from workbench.evaluation.tally import Rule

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as LLaVA's evaluation runs it."""

    name: str
    title: str
    measure: str
    """What the score is, in words; always in percent."""
    files: str
    """The reference files, by the names they are published under."""
    source: str
    """Where these come from."""
    suffix: str
    """The line after the question."""
    rule: Rule
    fields: tuple[str, ...]
    """Where a reference row keeps what is right, tried before the usual names."""
    leaves_out: bool = False
    """Whether a reference without a prediction is left out, as the official script does; else it counts as wrong."""


_ALL = (
    Benchmark(
        "seedbench",
        "SEED-Bench",
        "accuracy",
        "SEED-Bench.json",
        "Hub dataset AILab-CVC/SEED-Bench",
        LETTER,
        rules_choice.seedbench,
        ("gt_answer", "answer"),
    ),
    Benchmark(
        "pope",
        "POPE",
        "mean F1 of the splits",
        "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, or their folder; for answers with "
        "LLaVA's ids also llava_pope_test.jsonl",
        "GitHub AoiDragon/POPE, output/coco; LLaVA's eval.zip",
        SHORT,
        rules_yes_no.pope,
        ("label", "answer"),
        leaves_out=True,
    ),
    Benchmark(
        "mmbench",
        "MMBench (en, cn)",
        "CircularEval accuracy",
        "mmbench_dev_20230712.tsv or mmbench_dev_cn_20231003.tsv",
        "OpenCompass's MMBench page; a result .xlsx of the dev split brings its answers along",
        LETTER,
        rules_choice.mmbench,
        ("answer", "gt"),
    ),
    Benchmark(
        "mme",
        "MME",
        "points, as percent of 2,800",
        "MME_Benchmark_release_version/ or eval_tool/Your_Results/",
        "by request from MME's authors; or Hub dataset lmms-lab/MME",
        SHORT,
        rules_yes_no.mme,
        ("gt", "answer"),
    ),
    Benchmark(
        "scienceqa",
        "ScienceQA",
        "accuracy",
        "problems.json (and pid_splits.json), or LLaVA's llava_test_CQM-A.json",
        "GitHub lupantech/ScienceQA, data/scienceqa; LLaVA's eval.zip",
        LETTER,
        rules_choice.scienceqa,
        ("ground_truth", "answer"),
    ),
    Benchmark(
        "vqa",
        "VQAv2",
        "soft accuracy",
        "v2_mscoco_val2014_annotations.json",
        "visualqa.org, Download",
        SHORT,
        rules_free.vqa,
        ("answers", "gt_answers", "multiple_choice_answer"),
    ),
    Benchmark(
        "textvqa",
        "TextVQA",
        "soft accuracy",
        "TextVQA_0.5.1_val.json",
        "textvqa.org, Dataset",
        SHORT,
        rules_free.textvqa,
        ("answers", "gt_answers"),
    ),
    Benchmark(
        "vizwiz",
        "VizWiz",
        "soft accuracy",
        "val.json of Annotations.zip",
        "vizwiz.org, VQA task",
        UNANSWERABLE,
        rules_free.textvqa,
        ("answers", "gt_answers"),
    ),
    Benchmark(
        "gqa",
        "GQA",
        "exact match",
        "testdev_balanced_questions.json",
        "Stanford's GQA page, Questions",
        SHORT,
        rules_free.gqa,
        ("answer", "gt_answer"),
    ),
    Benchmark(
        "mmmu",
        "MMMU and other multiple choice",
        "accuracy",
        "answer_dict_val.json",
        "GitHub MMMU-Benchmark/MMMU",
        LETTER,
        rules_choice.mmmu,
        ("ground_truth", "answer"),
    ),
    Benchmark(
        "docvqa",
        "DocVQA",
        "mean ANLS",
        "val_v1.0_withQT.json",
        "rrc.cvc.uab.es, challenge 17",
        SHORT,
        rules_free.docvqa,
        ("answers", "answer"),
    ),
    Benchmark(
        "chartqa",
        "ChartQA",
        "relaxed accuracy",
        "test_human.json, test_augmented.json",
        "GitHub vis-nlp/ChartQA",
        SHORT,
        rules_free.chartqa,
        ("label", "answer"),
    ),
    Benchmark(
        "refcoco",
        "RefCOCO, RefCOCO+, RefCOCOg",
        "boxes with IoU of 0.5 or more",
        "rows with bbox, width and height",
        "GitHub lichengunc/refer",
        "Please provide the bounding box coordinate of the region this sentence describes:",
        rules_free.refcoco,
        ("bbox", "box", "answer"),
    ),
)
JUDGED = ("llavabench", "mmvet")
"""Those that a judge model scores are in `judged`."""
BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}


def table() -> str:
    """What `workbench benchmarks` prints."""
    lines = []
    for one in _listed():
        lines += [f"{one.name:<11} {one.title}: {one.measure}", f"            needs {one.files}"]
        suffix = one.suffix.replace("\n", " / ")
        asks = f"...{suffix}" if suffix else "the question alone"
        lines += [f"            from  {one.source}", f"            asks  {asks}"]
    return "\n".join(lines)


def listing() -> list[dict[str, str]]:
    """What `workbench benchmarks --json` prints.

    >>> "pope" in str(wb.benchmarks())
    True
    """
    names = ("name", "title", "measure", "files", "source", "suffix")
    return [{name: getattr(one, name) for name in names} for one in _listed()]


def _listed() -> list[Any]:
    """Those that a rule scores, then those that a judge does."""
    from workbench.evaluation import judged

    return [*BENCHMARKS.values(), *judged.JUDGED.values()]
