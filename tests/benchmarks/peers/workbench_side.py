"""The product itself: one call of `workbench.train`.

    python workbench_side.py JOB.json
    python workbench_side.py tower JOB.json    prints what the tower takes for the images of the measured steps

While features fit in memory the trainer makes them before the first step, which is not measured: their time is added.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import workbench as wb


def tower(job: dict[str, Any]) -> dict[str, float]:
    """(wall, processor) seconds that opening and encoding the images of every step but the first takes."""
    import torch

    from workbench.data.images import load_image
    from workbench.model.llava import build

    torch.set_num_threads(job["threads"])
    recipe = wb.Recipe.from_dict(job["recipe"])
    llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
    names = {row["id"]: row["image"] for row in json.loads(Path(job["rows"]).read_text())}
    steps = [sorted({names[id] for id in batch}) for batch in job["batches"]]
    moments = []
    for images in steps:
        for start in range(0, len(images), 32):
            opened = [load_image(Path(job["images"]) / name) for name in images[start : start + 32]]
            llava.tower_features(torch.stack([llava.image_mode.pixels(image) for image in opened]))
        moments.append((time.perf_counter(), time.process_time()))
    return {"wall": moments[-1][0] - moments[0][0], "cpu": moments[-1][1] - moments[0][1]}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[-1]).read_text())
    if sys.argv[1] == "tower":
        print("\n" + json.dumps(tower(job)))
    else:
        wb.train(wb.Recipe.from_dict(job["recipe"]), out=job["out"], progress=False)
