"""What stage 1 is worth: stage 2 from a fresh projector, on the data and questions of a finished quickstart.

    python tests/benchmarks/without_stage1.py runs/quickstart [OUT]

Prints the held-out accuracy with stage 1 (from the run's report) and without it, per question type.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from workbench.data.dataset import Dataset
from workbench.evaluation.task import evaluate
from workbench.inference.engine import Engine
from workbench.model.llava import load
from workbench.quickstart import SEED, held_out_questions, open_image_of
from workbench.run import Run
from workbench.training.trainer import train


def main(quickstart_run: str, out: str | None = None) -> None:
    run = Run.open(quickstart_run)
    report = json.loads((run.path / "report.json").read_text())
    dataset = Dataset.open(report["dataset"])
    recipe = Run.open(run.path / "finetune").recipe.with_overrides("model.projector_from=null")
    with tempfile.TemporaryDirectory() as temporary:
        trained = train(recipe, out=out or Path(temporary) / "without")
        engine = Engine(load(trained.path), open_image=open_image_of(dataset), name="without stage 1")
        results = evaluate(engine, held_out_questions(dataset, seed=SEED))
    print(
        json.dumps(
            {
                "with stage 1": {"accuracy": report["accuracy_after"], "by_type": report["by_type"]["after"]},
                "without stage 1": {"accuracy": round(results.accuracy, 4), "by_type": results.by_type},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
