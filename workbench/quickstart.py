"""The whole way, top to bottom, as a person would write it: images, FiftyOne, conversations, two stages, scores.

Knows: the order of the steps and what goes into the report.
Does not know: how any step is done; each is a call of its room.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.conversation import Conversation, Image
from workbench.data.batches import usable_processors
from workbench.data.dataset import Dataset
from workbench.data.folder import CARD
from workbench.errors import DataError
from workbench.quickstart_report import summary, write_results
from workbench.recipe import Recipe
from workbench.resources import state_folder
from workbench.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from workbench.evaluation.task import Results
    from workbench.model.llava import Llava

SEED = 0
COUNT = 2000
"""Scenes."""
MOST_QUESTIONS = 400
"""Held-out questions that are scored; each is asked four times (before, after, two blind baselines)."""
FEWEST_IMAGES = 20
FRACTIONS = {"train": 0.84, "val": 0.04, "test": 0.12}


@dataclass
class Clock:
    """Seconds per step, in order."""

    times: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        print(f"\n== {name}", flush=True)
        yield
        self.times.append((name, time.monotonic() - started))


def quickstart(
    out: Path | str = "runs/quickstart",
    *,
    images: Path | str | None = None,
    question: str | None = None,
    resume: bool = False,
    count: int = COUNT,
    overrides: Sequence[str] = (),
    align_overrides: Sequence[str] = (),
) -> Run:
    """Make a LLaVA from scratch: on drawn scenes, or on the pictures in the folder `images`.

    `question`: how the class of a picture is asked for, "What is this?" by default. `count`: how many scenes.
    `overrides` such as `train.epochs=1` go to the recipe of stage 2, `align_overrides` to that of stage 1. Writes to
    the run folder `out`: `report.json`, `report.html`, both stages' runs, the tuned checkpoint and `answers-*.jsonl`.
    Ctrl-C, or `stop` sent to a stage's run, ends it after the step at hand; an unfinished run goes on with `resume`.
    Raises RunError where `out` is in the way, DataError for unusable pictures.
    """
    import torch

    source = str(Path(images).absolute()) if images else None
    settings = {
        "images": source,
        "question": question,
        "count": count,
        "overrides": list(overrides),
        "align_overrides": list(align_overrides),
    }
    for name, changes in zip(_recipe_names(images is not None), (align_overrides, overrides), strict=True):
        Recipe.load(name, changes)  # a mistake in an override is told before anything is done
    run = Run.create(out, settings, kind="quickstart", resume=resume)
    clock, started = Clock(), time.monotonic()
    torch.set_num_threads(usable_processors())
    with run:
        with clock.step("images"):
            dataset = _images(images, count)
        with clock.step("FiftyOne: look, clean, split"):
            funnel = _curate(dataset)
        with clock.step("conversations"):
            _generate(dataset, question)
        held_out = held_out_questions(dataset, seed=SEED)
        align, finetune = _recipes(dataset, run, overrides, align_overrides, own=images is not None)
        with clock.step("before: starting parts, fresh projector"):
            before = _ask(_fresh(finetune), dataset, held_out, "before")
        with clock.step("stage 1, align: the projector learns from captions"):
            _stage(align, run.path / "align")
        with clock.step("stage 2, finetune: QLoRA on conversations"):
            tuned_run = _stage(finetune, run.path / "finetune")
        with clock.step("after, and blind"):
            after, blind, grey = _after(tuned_run, dataset, held_out)
        _keep_checkpoint(tuned_run, run)
        scores = {"before": before, "after": after, "blind": blind, "grey": grey}
        seconds = run.info["seconds"] + time.monotonic() - started  # those before an interruption count as well
        report = write_results(run, dataset, funnel, scores, clock.times, seconds)
    print(summary(run, report))
    return run


# --- the steps ------------------------------------------------------------------------------------------------


def _images(images: Path | str | None, count: int) -> Dataset:
    """The scenes, or a folder of pictures, as a dataset in the state folder; what is there already is used again."""
    home = state_folder() / "datasets"
    if images is None:
        from workbench.data.scene_files import make

        return make(home / ("scenes" if count == COUNT else f"scenes-{count}"), count=count, replace=True)
    from workbench.data.formats import import_folder

    folder = Path(images).absolute()
    out = home / f"{folder.name}-{_listing(folder)}"  # other pictures make another dataset: no edit is ever lost
    return Dataset.open(out) if (out / CARD).exists() else import_folder(folder, out, name=folder.name)


def _listing(folder: Path) -> str:
    """A short text that changes whenever a file in the folder comes, goes or changes."""
    from workbench.conversation import new_id

    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return new_id(folder, *((path, held.st_size, held.st_mtime_ns) for path, held in files))[:8]


def _curate(dataset: Dataset) -> list[dict[str, Any]]:
    """Into FiftyOne; broken files and copies out; splits that no duplicate crosses. Returns the funnel's rows."""
    import polars as pl

    from workbench.curation.filters import curate
    from workbench.curation.splits import check_leakage, split
    from workbench.curation.table import to_fiftyone

    before = dataset.images.filter(pl.col("status") == "removed").select("id")
    if before.height:  # an earlier quickstart's choice: this one shows its own
        again = before.with_columns(status=pl.lit("ok"), reason=pl.lit(None, pl.String))
        dataset.update_images(again, operation={"name": "reset"})
    funnel = curate(dataset, view=to_fiftyone(dataset, conversations=False))
    usable = dataset.images.filter(pl.col("status") == "ok").height
    if usable < FEWEST_IMAGES:
        raise DataError(str(dataset.path), found=f"{usable} usable images", expected=f"at least {FEWEST_IMAGES}")
    split(dataset, FRACTIONS, seed=SEED, stratify="label")
    leaks = check_leakage(dataset)
    if leaks.height:
        raise DataError(str(dataset.path), found=f"{leaks.height} images in two splits", expected="none")
    print(funnel)
    return funnel.table.to_dicts()


def _generate(dataset: Dataset, question: str | None) -> None:
    """Conversations from the annotations, and beside their images in FiftyOne."""
    from workbench.curation.table import to_fiftyone
    from workbench.instruct.generator import generate
    from workbench.instruct.material import WHAT

    print(generate(dataset, seed=SEED, question=question or WHAT))
    to_fiftyone(dataset)


def held_out_questions(dataset: Dataset, *, seed: int) -> list[Conversation]:
    """The single questions of the test split, at most `MOST_QUESTIONS`, the same ones for the same dataset.

    Raises DataError before anything is trained where they are about fewer than two images.
    """
    import numpy as np

    from workbench.instruct.generator import QUESTION

    asked = sorted(dataset.conversations("test", tasks=[QUESTION]), key=lambda one: one.id)
    if len({one.images[0] for one in asked}) < 2:
        found = f"{len(asked)} held-out questions, about fewer than two images"
        fix = "put images in sub-folders named by class, or different captions in a captions.csv beside them"
        raise DataError(str(dataset.path), found=found, expected="questions to score the model with", fix=fix)
    order = np.random.default_rng(seed).permutation(len(asked))[:MOST_QUESTIONS]
    return [asked[int(index)] for index in sorted(order)]


def _recipes(
    dataset: Dataset, run: Run, overrides: Sequence[str], align_overrides: Sequence[str], *, own: bool
) -> tuple[Recipe, Recipe]:
    """The shipped recipes of both stages, pointed at this dataset and this run."""
    data = f"data.dataset={dataset.path}"
    names = _recipe_names(own)
    align = Recipe.load(names[0], [data, *align_overrides])
    finetune = Recipe.load(names[1], [data, f"model.projector_from={run.path / 'align'}", *overrides])
    return align, finetune


def _recipe_names(own: bool) -> tuple[str, str]:
    """Of stage 1 and stage 2; `own`: on a person's own pictures."""
    return ("tiny-align-images", "tiny-finetune-images") if own else ("tiny-align", "tiny-finetune-qlora")


def _stage(recipe: Recipe, out: Path) -> Run:
    """Train one stage; a finished one is taken as it is, an unfinished one goes on.

    Raises KeyboardInterrupt where it was asked to stop: half a stage is no ground for the next.
    """
    from workbench.training.trainer import train

    if (out / "run.json").exists() and Run.open(out).status == "finished":
        return Run.open(out)
    run = train(recipe, out=out, resume=(out / "run.json").exists())
    if run.status != "finished":
        raise KeyboardInterrupt
    return run


def _fresh(recipe: Recipe) -> Llava:
    """The starting parts as stage 2 loads them, but with the projector as it is before stage 1."""
    from workbench.model.llava import build

    spec = recipe.model.model_copy(update={"projector_from": None})
    return build(spec, template=recipe.template, image_mode=recipe.image_mode, seed=recipe.train.seed)


def _ask(
    llava: Llava, dataset: Dataset, questions: Sequence[Conversation], name: str, *, grey: bool = False
) -> Results:
    from workbench.evaluation.task import evaluate
    from workbench.inference.engine import Engine

    engine = Engine(llava, open_image=_grey_picture if grey else open_image_of(dataset), name=name)
    results = evaluate(engine, questions, description=f"asking: {name}")
    print(results)
    return results


def open_image_of(dataset: Dataset) -> Callable[[Image], Picture]:
    """Opens the images of conversations about `dataset`."""
    from workbench.data.images import load_image

    return lambda image: load_image(dataset.resolve(image))


def _grey_picture(image: Image) -> Picture:
    from PIL import Image as PILImage

    return PILImage.new("RGB", (96, 96), (128, 128, 128))


def _after(tuned: Run, dataset: Dataset, held_out: Sequence[Conversation]) -> tuple[Results, Results, Results]:
    """The tuned model with the right image, with another held-out image, and with a grey one."""
    from workbench.evaluation.task import derange
    from workbench.model.llava import load

    llava = load(tuned.path)
    after = _ask(llava, dataset, held_out, "after")
    blind = _ask(llava, dataset, derange(held_out, seed=SEED), "blind")
    return after, blind, _ask(llava, dataset, held_out, "grey", grey=True)


def _keep_checkpoint(tuned: Run, run: Run) -> None:
    """Put the tuned checkpoint where commands look for a run's own."""
    from workbench.resources import atomic_folder

    source = tuned.checkpoint
    if source is not None:
        with atomic_folder(run.path / "checkpoints" / "best", replace=True) as target:
            shutil.copytree(source, target, dirs_exist_ok=True)
