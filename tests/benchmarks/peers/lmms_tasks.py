"""Our benchmark rows as tasks of lmms-eval: its own words, scoring and settings, our rows from a local file.

Knows: the fields that its POPE, MME and SEED-Bench read, the files it leaves, which of its numbers is which of ours.
Does not know: how it is started.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.evaluation.task import Evaluation

TASK = """\
include: {its}
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
doc_to_visual: !function lmms_pictures.opened
"""
QUESTION = 'lmms_eval_specific_kwargs: {default: {pre_prompt: "", post_prompt: ""}}\n'
"""For POPE and MME: the question alone."""
SCORES = {
    "pope": (
        ("pope_accuracy", ("all", "accuracy"), 100),
        ("pope_precision", ("all", "precision"), 100),
        ("pope_recall", ("all", "recall"), 100),
        ("pope_f1_score", ("all", "f1"), 100),
    ),
    "mme": (("mme_perception_score", ("perception", "points"), 1),),
    "seedbench": (("seed_all", ("image", "score"), 100),),
}
"""Its measure, ours (part, measure), and what its number is multiplied by. Its `pope_yes_ratio` counts references."""


def write_tasks(folder: Path, python: Path, asked: Mapping[str, Evaluation], prompts: str) -> None:
    """A YAML file and the rows for each benchmark; `prompts` as of `workbench.evaluate`."""
    where = "import importlib.util; print(importlib.util.find_spec('lmms_eval').submodule_search_locations[0])"
    home = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    folder.mkdir()
    for name, evaluation in asked.items():
        rows = folder / f"{name}.json"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _rows(name, evaluation, prompts)))
        text = TASK.format(its=f"{home}/tasks/{name}/{name}.yaml", task=f"made_{name}", rows=rows)
        (folder / f"made_{name}.yaml").write_text(text + (QUESTION if prompts == "question" else ""))


def _rows(name: str, evaluation: Evaluation, prompts: str) -> list[dict[str, Any]]:
    rows = []
    for one in evaluation.conversations:
        about, path = one.metadata["about"], str(evaluation.resolve(one.images[0]))
        row = {"path": path, "answer": one.reference, "question_id": one.id, "question": about.get("question")}
        if name == "pope":
            row["question"] = about["text"]
        elif name == "mme":
            row |= {"question_id": path, "category": about["category"]}  # the two questions of a picture are a pair
        else:
            row |= {key: about[key] for key in ("choice_a", "choice_b", "choice_c", "choice_d", "data_type")}
        if prompts == "question":
            row["question"] = one.prompt.messages[-1].text  # of MME's questions it would leave the line after them
        rows.append(row)
    return rows


def read_answers(out: Path, name: str) -> list[tuple[str, str]]:
    """(text that was asked, answer) of each row, in the order of the rows."""
    (file,) = out.rglob(f"*_samples_made_{name}.jsonl")
    samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda one: one["doc_id"])
    return [(one["input"], one["filtered_resps"].strip()) for one in samples]


def read_scores(out: Path, name: str) -> dict[str, float]:
    """Its measures in our units."""
    (file,) = out.rglob("*_results.json")
    found = json.loads(file.read_text())["results"][f"made_{name}"]
    return {measure: times * found[f"{measure},none"] for measure, _, times in SCORES[name]}
