"""Training: foreseen, run, steered, and what it found hard."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import resources
from workbench.commands.common import AddVerb, add_json, add_set, imports, positive, show
from workbench.errors import DataError, WorkbenchError

if TYPE_CHECKING:
    from workbench.recipe import Recipe


def _plan(given: argparse.Namespace) -> int:
    from workbench.recipe import Recipe
    from workbench.recipe_yaml import on_dataset

    named = [on_dataset(given.dataset)] if given.dataset else []
    recipe = Recipe.load(given.recipe, [*(given.set or ()), *named])
    if (given.rate and given.cards is None) or (given.conversations and not given.rate):
        expected = "--cards with --rate, and --conversations with both"
        raise WorkbenchError("--rate and --conversations", found="one without the other", expected=expected)
    _check_model(recipe, projector=given.cards is None)  # which counts the same whether stage 1 was run or not
    if given.cards is not None:
        from workbench.training.cards import CONVERSATIONS, SIZES, cards

        rate = given.rate and given.rate * 1e12
        found = cards(
            recipe,
            given.cards or SIZES,
            processes=given.processes,
            rate=rate,
            conversations=given.conversations or CONVERSATIONS,
        )
        show(given, found, found.summary())
        return 0
    from workbench.training.plan import plan

    forecast = plan(recipe, fit=given.fit, processes=given.processes)
    forecast = forecast.dry_run() if given.dry_run else forecast
    show(given, forecast, forecast.summary())
    return 0 if forecast.trains else 1


def _train(given: argparse.Namespace) -> int:
    from workbench.recipe import Recipe

    recipe = Recipe.load(given.recipe, given.set)  # a mistake in it is told before torch is loaded
    if os.environ.get("RANK", "0") == "0":  # of several processes, one asks
        _check_model(recipe)
    if given.background:
        if given.processes != 1:
            fix = "leave out --background, and start it with nohup, or by your cluster's own command"
            raise WorkbenchError("--background", found="--processes", expected="one of the two", fix=fix)
        _say_defaults(given, recipe.data.dataset)
        _check_data(recipe, given.out)
        return _train_behind(given, recipe)
    if given.processes != 1:
        _check_data(recipe, given.out)
        from workbench.training.launch import launch

        again = ["train", given.recipe, "--out", given.out, *(f"--set={item}" for item in given.set)]
        again += [f"--{name}" for name in ("resume", "json") if getattr(given, name)]
        return launch(again, given.processes)
    first = os.environ.get("RANK", "0") == "0"  # of several processes, which speaks for all
    if first:
        _say_defaults(given, recipe.data.dataset)
        if "RANK" not in os.environ:  # of several, the others would wait for the one that found out
            _check_data(recipe, given.out)
    with imports():
        from workbench.training.trainer import train

    try:
        run = train(recipe, out=given.out, resume=given.resume)
    except WorkbenchError:
        if first:
            raise
        return 1
    finished = run.status == "finished"
    following = f"workbench chat {run.path}" if finished else "the same command with --resume"
    if finished and recipe.train.stage == "align":
        following += f", or stage 2 with --set model.projector_from={run.path}"
    rows = run.metrics()
    losses = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    step, best = (rows[-1]["step"] if rows else 0), min(losses, default=None)
    told = {"run": str(run.path), "status": run.status, "step": step, "val_loss": best}
    if first:
        show(given, f"{run.status}: {run.path}\nnext: {following}", told)
    return 0 if finished else 130  # so that a script does not go on with half a model


def _check_model(recipe: Recipe, *, projector: bool = True) -> None:
    """A model that cannot be had is told before torch is loaded, and before there is a run folder."""
    from workbench.model.sources import check_there

    model = recipe.model
    check_there(model.checkpoint, model.vision, model.language, model.projector_from if projector else None)


def _check_data(recipe: Recipe, out: str) -> None:
    """So is a dataset that is not there; where the run folder cannot be made, that is told first."""
    from workbench.data.dataset import Dataset
    from workbench.recipe_yaml import is_file

    if not next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists()).is_dir():
        return
    for place in (recipe.data.dataset, *(part.dataset for part in recipe.data.mix)):
        if Path(place).exists():
            continue
        if is_file(place):
            expected = "a dataset folder, or a LLaVA JSON file"
            raise DataError(place, found="no such file or folder", expected=expected, fix="check the path")
        try:
            Dataset.open(place)  # by its name in the state folder
        except WorkbenchError as error:
            if place != "scenes":
                raise
            fix = "`workbench quickstart` draws it and writes its conversations; or name yours: data.dataset=DATASET"
            raise WorkbenchError(error.where, found=error.found, expected=error.expected, fix=fix) from None


def _say_defaults(given: argparse.Namespace, dataset: str) -> None:
    """What a person may not expect: a shipped recipe's own dataset, and --resume with nothing to go on with."""
    named = any(text.startswith("data.dataset=") for text in given.set)
    if not named and not Path(given.recipe).is_file():
        own = "--set data.dataset=DATASET names yours"
        print(f"trains on {dataset!r}, the dataset that the recipe {given.recipe} names; {own}", file=sys.stderr)
    if given.resume and not Path(given.out, "run.json").is_file():
        print(f"no run in {given.out} to resume: a new one starts", file=sys.stderr)


def _train_behind(given: argparse.Namespace, recipe: Recipe) -> int:
    from workbench.background import train

    run = train(recipe, out=given.out, resume=given.resume, background=True)
    show(given, f"{run.status}: {run.path}\nnext: workbench steer {run.path} watch", {"run": str(run.path)})
    return 0


def _steer(given: argparse.Namespace) -> None:
    from workbench.background import attach

    run = attach(given.run)
    if given.action == "watch":
        run.wait()
    else:
        getattr(run, given.action)()
    waits = "save" if run.status == "paused" and "save" in run.commands else run.control
    asked = f", asked to {waits}" if run.working and waits else ""
    show(given, f"{run.status}{asked}: {run.path}", {"run": str(run.path), "status": run.status})


def _losses(given: argparse.Namespace) -> None:
    from workbench.training.worst import worst

    table = worst(given.run, None if given.out else given.n, dataset=given.to)
    if given.out:
        resources.write_atomic(given.out, table.write_csv())
    told = []
    for row in table.head(given.n).iter_rows(named=True):
        told.append(f"{row['excess']:+7.3f}  {row['loss']:6.3f}  {row['id']}  {row['text'][:100]}")
    if given.to:
        from workbench.curation.losses import SAVED, write_losses

        made = write_losses(given.run, given.to)
        told.append(f"\nwritten to {made.name}: next: workbench open {given.to}, and choose the saved view {SAVED!r}")
    show(given, "\n".join([" excess    loss  conversation", *told]), table.head(given.n).to_dicts())


def rate_of(text: str) -> float:
    rate = float(text)
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return rate


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "plan",
        _plan,
        "What a recipe will train, see and take, and whether it fits, before a byte of weights is read.",
        "plan tiny-align data/holiday",
        "plan llava-1.5-7b-lora --set train.memory_gb=80 --fit",
        "plan my-recipe.yaml --dry-run --json",
        "plan llava-1.5-7b-qlora --cards 16 24",
        "plan llava-1.5-7b-full --cards 80 --processes 8 --rate 94 --conversations 665298",
    ).add_argument
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    add("dataset", nargs="?", metavar="DATASET", help="dataset folder (default: the recipe's)")
    add_set(add, "train.memory_gb=80")
    add("--fit", action="store_true", help="choose packs, checkpointing and feature cache so that it fits")
    add("--processes", type=positive, default=1, metavar="N", help="memory and time of each of so many")
    told = "without any data: on which cards (GB; 16, 24, 40 and 80 if none is named) it trains, and the model answers"
    add("--cards", type=float, nargs="*", metavar="GB", help=told)
    told = "with --cards: hours of training too, if each card keeps so many TFLOPS (10^12 operations a second)"
    add("--rate", type=rate_of, metavar="TFLOPS", help=told)
    add("--conversations", type=positive, metavar="N", help="with --rate: of so many (default: 100,000)")
    add("--dry-run", action="store_true", help="run the worst pack in a process of its own and measure its memory")
    add_json(add)

    add = verb(
        "train",
        _train,
        "Train one stage as a recipe says. Writes a run folder that can be resumed.",
        "train tiny-align --set data.dataset=data/holiday --out runs/align",
        "train my-recipe.yaml --set train.lr=2e-4 --set train.epochs=2 --out runs/mine --resume",
    ).add_argument
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    add_set(add, "train.lr=2e-4")
    add("--out", required=True, metavar="DIR", help="run folder")
    add("--resume", action="store_true", help="go on with an unfinished run in --out")
    add("--background", action="store_true", help="in a process of its own that outlives this terminal")
    add("--processes", type=int, default=1, metavar="N", help="so many processes share every step, one a GPU")
    add_json(add)

    add = verb(
        "steer",
        _steer,
        "Watch a run that another process trains, pause it, save it now, stop it, or let it go on.",
        "steer runs/mine watch",
        "steer runs/mine pause",
    ).add_argument
    add("run", metavar="RUN", help="run folder")
    add("action", choices=("watch", "pause", "resume", "save", "stop"), help="resume also starts a stopped run again")
    add_json(add)

    add = verb(
        "losses",
        _losses,
        "The conversations that a run found hardest to learn, worst first: where bad data is found.",
        "losses runs/mine",
        "losses runs/mine --to data/holiday",
    ).add_argument
    add("run", metavar="RUN", help="run folder of a training")
    add("-n", type=positive, default=20, metavar="N", help="show so many (default: %(default)s)")
    add("--to", metavar="DATASET", help="write them into the FiftyOne view of this dataset folder, to sort by")
    add("--out", metavar="CSV", help="write all of them there")
    add_json(add)
