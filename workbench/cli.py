"""The command `workbench`: one verb per step, each a few lines that call the room that does the work.

Knows: arguments, examples, and how a person's error becomes one line and an exit status: 1 for an error that can be put
right, 2 for a command that cannot be understood, 130 for Ctrl-C and for a run that was stopped.
Does not know: how anything is done; rooms are imported inside their verb, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import __version__, resources
from workbench.errors import DatabaseError, DataError, WorkbenchError

if TYPE_CHECKING:
    from workbench.evaluation.task import Results
    from workbench.instruct.limits import Budget
    from workbench.instruct.loop import Outcome
    from workbench.recipe import Recipe

Verb = Callable[[argparse.Namespace], int | None]
_FORMATS = ("images", "pdf", "llava", "sharegpt", "coco", "hf-dataset", "fiftyone")
"""What a dataset is exported as."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status. A `WorkbenchError` is one line on stderr, never a traceback."""
    given = _parser().parse_args(arguments)
    given.stdout = sys.stdout
    # With --json everything a room prints goes to stderr, so that stdout holds the JSON and nothing else.
    quiet = redirect_stdout(sys.stderr) if getattr(given, "json", False) else nullcontext()
    try:
        with quiet, resources.disk_errors("the disk"):
            return given.verb(given) or 0
    except WorkbenchError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was finished before is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough; keep the interpreter's own flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _show(given: argparse.Namespace, text: object, data: object) -> None:
    """`data` as one line of JSON with --json, else `text`."""
    print(json.dumps(data, ensure_ascii=False) if given.json else text, file=given.stdout)


# --- the verbs ------------------------------------------------------------------------------------------------


def _quickstart(given: argparse.Namespace) -> None:
    from workbench.quickstart import quickstart

    quickstart(
        given.out,
        images=given.images,
        question=given.question,
        resume=given.resume,
        count=given.count,
        overrides=given.set,
        align_overrides=given.set_align,
    )


def _doctor(given: argparse.Namespace) -> int:
    from workbench.doctor import as_json, doctor, render

    checks = doctor()
    _show(given, render(checks).rstrip(), as_json(checks))
    return 0 if all(check.works for check in checks) else 1


def _import(given: argparse.Namespace) -> None:
    from workbench.curation.in_and_out import import_dataset

    source = given.source if len(given.source) > 1 else given.source[0]
    asked = {"images": given.images, "dpi": given.dpi, "name": given.name}
    options = {key: value for key, value in asked.items() if value is not None}
    dataset = import_dataset(source, given.out, format=given.format, **options)
    card = dataset.card
    following = "curate" if card["counts"]["conversations"] else "generate"
    usable = card["counts"]["status"].get("ok")
    told = f"next: workbench {following} {given.out}" if usable else f"no picture in {given.out} can be used"
    _show(given, told, {"dataset": str(dataset.path), "counts": card["counts"]})


def _curate(given: argparse.Namespace) -> None:
    from workbench.curation.curate_recipe import CurateRecipe
    from workbench.curation.filters import curate
    from workbench.data.dataset import Dataset

    if given.set and not given.recipe:
        raise DataError("--set", found="no recipe to change", expected="--recipe with a file or a shipped name")
    recipe = CurateRecipe.load(given.recipe, given.set) if given.recipe else None
    funnel = curate(Dataset.open(given.dataset), recipe)
    if given.out:
        funnel.save(given.out)
    page = f"\nwritten: {given.out}" if given.out else ""
    _show(given, f"{funnel}{page}", funnel.table.to_dicts())


def _open(given: argparse.Namespace) -> None:
    import threading

    from workbench.curation.app import open

    open(given.dataset, port=given.port, browser=not given.no_browser)
    print("Ctrl-C closes it", flush=True)
    while not threading.Event().wait(0.5):  # a wait without an end is not always interrupted
        pass


def _versions(given: argparse.Namespace) -> None:
    from workbench.data.dataset import Dataset

    dataset = Dataset.open(given.dataset)
    if given.snapshot:
        version = dataset.snapshot()
        _show(given, f"kept as {version}", {"version": version})
    elif given.undo is not None:
        version = dataset.undo(given.undo or None)
        told = f"back at {version}\nnext: workbench versions {given.dataset} --undo brings back what was there before"
        _show(given, told, {"version": version})
    elif given.diff:
        if len(given.diff) > 2:
            raise DataError("--diff", found=f"{len(given.diff)} versions", expected="one, or two")
        difference = dataset.diff(*given.diff)
        _show(given, difference, difference.summary())
    else:
        _show(given, dataset.lineage, dataset.lineage)


def _generate(given: argparse.Namespace) -> int:
    from workbench.data.dataset import Dataset
    from workbench.instruct.generator import estimate, generate
    from workbench.instruct.material import WHAT

    tasks = _counted(given.tasks) if given.tasks else None
    wanted = {"teacher": given.teacher, "tasks": tasks, "question": given.question or WHAT, "limit": given.limit}
    asked = {**wanted, "prices": given.prices, "again": given.again}
    dataset = Dataset.open(given.dataset)
    if given.estimate:
        told = estimate(dataset, **asked)
        _show(given, told, told.summary())
        return 0
    made = generate(dataset, **asked, seed=given.seed, budget=_budget(given), script=given.script)
    _show(given, made, made.summary())
    return _ended(made.outcome)


def _budget(given: argparse.Namespace) -> Budget:
    from workbench.instruct.limits import Budget

    return Budget(money=given.max_money, tokens=given.max_tokens, calls=given.max_calls, seconds=given.max_seconds)


def _ended(outcome: Outcome | None) -> int:
    if outcome is None or outcome.stopped is None:
        return 0
    return 130 if outcome.stopped == "interrupted" else 0 if outcome.asked or outcome.stored else 1


def _judge(given: argparse.Namespace) -> int:
    from workbench.data.dataset import Dataset
    from workbench.instruct.judging import judge_dataset

    judged = judge_dataset(
        Dataset.open(given.dataset),
        given.judge,
        rubric=given.rubric,
        accept_from=given.accept_from,
        limit=given.limit,
        reject=given.reject,
        prices=given.prices,
        budget=_budget(given),
    )
    if given.out:
        judged.table.write_csv(given.out)
    _show(given, judged, judged.summary())
    return _ended(judged.outcome)


def _counted(tasks: Sequence[str]) -> dict[str, int]:
    """`conversation=3` is three for each image, `detail` one."""
    counts = {}
    for text in tasks:
        name, _, count = text.partition("=")
        if count and not count.isdecimal():
            raise DataError(f"task {text!r}", found=f"{count!r}", expected="a whole number, as in conversation=3")
        counts[name] = int(count or 1)
    return counts


def _plan(given: argparse.Namespace) -> int:
    from workbench.recipe import Recipe

    named = [f"data.dataset={given.dataset}"] if given.dataset else []
    recipe = Recipe.load(given.recipe, [*(given.set or ()), *named])
    from workbench.training.plan import plan

    forecast = plan(recipe, fit=given.fit)
    forecast = forecast.dry_run() if given.dry_run else forecast
    _show(given, forecast, forecast.summary())
    return 0 if forecast.trains else 1


def _train(given: argparse.Namespace) -> int:
    from workbench.recipe import Recipe

    recipe = Recipe.load(given.recipe, given.set)  # a mistake in it is told before torch is loaded
    if given.background:
        if given.processes != 1:
            fix = "leave out --background, and start it with nohup, or by your cluster's own command"
            raise WorkbenchError("--background", found="--processes", expected="one of the two", fix=fix)
        _say_defaults(given, recipe.data.dataset)
        return _train_behind(given, recipe)
    if given.processes != 1:
        from workbench.training.launch import launch

        again = ["train", given.recipe, "--out", given.out, *(f"--set={item}" for item in given.set)]
        again += [f"--{name}" for name in ("resume", "json") if getattr(given, name)]
        return launch(again, given.processes)
    from workbench.training.trainer import train

    first = os.environ.get("RANK", "0") == "0"  # of several processes, which speaks for all
    if first:
        _say_defaults(given, recipe.data.dataset)
    try:
        run = train(recipe, out=given.out, resume=given.resume)
    except WorkbenchError:
        if first:
            raise
        return 1
    finished = run.status == "finished"
    following = f"workbench chat {run.path}" if finished else "the same command with --resume"
    rows = run.metrics()
    losses = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
    step, best = (rows[-1]["step"] if rows else 0), min(losses, default=None)
    told = {"run": str(run.path), "status": run.status, "step": step, "val_loss": best}
    if first:
        _show(given, f"{run.status}: {run.path}\nnext: {following}", told)
    return 0 if finished else 130  # so that a script does not go on with half a model


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
    _show(given, f"{run.status}: {run.path}\nnext: workbench steer {run.path} watch", {"run": str(run.path)})
    return 0


def _steer(given: argparse.Namespace) -> None:
    from workbench.background import attach

    run = attach(given.run)
    if given.action == "watch":
        run.wait()
    else:
        getattr(run, given.action)()
    asked = f", asked to {run.control}" if run.working and run.control else ""
    _show(given, f"{run.status}{asked}: {run.path}", {"run": str(run.path), "status": run.status})


def _losses(given: argparse.Namespace) -> None:
    from workbench.losses import worst

    table = worst(given.run, None)
    if given.out:
        resources.write_atomic(given.out, table.write_csv())
    shown, told = table.head(given.n), []
    said = _said(given, shown["id"].to_list())
    for row in shown.iter_rows(named=True):
        told.append(f"{row['excess']:+7.3f}  {row['loss']:6.3f}  {row['id']}  {said.get(row['id'], '')[:100]}")
    if given.to:
        from workbench.curation.losses import SAVED, write_losses

        made = write_losses(given.run, given.to)
        told.append(f"\nwritten to {made.name}: next: workbench open {given.to}, and choose the saved view {SAVED!r}")
    _show(given, "\n".join([" excess    loss  conversation", *told]), table.head(given.n).to_dicts())


def _said(given: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """Question and answer of these conversations on a line; none where the dataset cannot be read."""
    from workbench.data.dataset import Dataset

    wanted = set(names)
    try:
        dataset = Dataset.open(given.to or _dataset_of(given.run))
        rows = {one.id: one for one in dataset.iter_conversations() if one.id in wanted}
    except WorkbenchError:
        return {}
    return {name: " | ".join(" ".join(turn.text.split()) for turn in one.messages) for name, one in rows.items()}


def _evaluate(given: argparse.Namespace) -> None:
    if given.out and Path(given.out).is_dir():  # told before the questions are asked, not after
        fix = f"--out {Path(given.out, 'answers.jsonl')}"
        raise WorkbenchError(given.out, found="a folder", expected="a file to write", fix=fix)
    chosen = {"load": given.load, "device": given.device}
    results = _asked(given.model, given.dataset, given.split, given.tasks, given.scorer, given.limit, **chosen)
    if given.out:
        results.save(given.out)
    _show(given, results, results.summary())


def _asked(
    model: str, dataset: str, split: str = "test", tasks: Sequence[str] = ("question",), scorer: str = "normalised",
    limit: int | None = None, *, load: str | None = None, device: str = "auto",
) -> Results:  # fmt: skip
    """The held-out conversations of a dataset, asked of a model."""
    from workbench.data.dataset import Dataset
    from workbench.data.images import load_image
    from workbench.evaluation.task import evaluate
    from workbench.inference.engine import Engine
    from workbench.model import llava

    data = Dataset.open(dataset)
    asked = data.conversations(split, tasks=tasks)[:limit]
    if not asked:
        found = f"no {' or '.join(tasks)} in split {split}"
        raise DataError(str(data.path), found=found, fix="`workbench generate` writes some; --split and --tasks choose")
    loaded = llava.load(model, load=load, device=device)
    engine = Engine(loaded, open_image=lambda image: load_image(data.resolve(image)), name=model)
    return evaluate(engine, asked, scorer=scorer)


def _score(given: argparse.Namespace) -> None:
    from workbench.evaluation.score import score

    scored = score(given.benchmark, given.predictions, given.references)
    _show(given, scored, scored.summary())


def _benchmarks(given: argparse.Namespace) -> None:
    from workbench.evaluation.benchmarks import listing, table

    _show(given, table(), listing())


def _chat(given: argparse.Namespace) -> None:
    from workbench.chat_model import SamplingOptions
    from workbench.inference.chat import chat

    options = SamplingOptions(temperature=given.temperature, max_tokens=given.max_tokens, seed=given.seed)
    chat(given.model, image=given.image, options=options, load=given.load, device=given.device)


def _export(given: argparse.Namespace) -> None:
    if given.form != "hf":
        return _export_dataset(given)
    from workbench.model.export import export_hf

    if Path(given.run, "card.yaml").is_file():
        fix = "--as llava, sharegpt, coco, hf-dataset, images, pdf or fiftyone"
        raise DataError(given.run, found="a dataset", expected="with --as hf the run folder of a model", fix=fix)
    written = export_hf(given.run, given.out, base=given.base)
    _show(given, f"written: {written}", {"written": str(written)})
    if given.base == "original":
        _say_change(given)


def _export_dataset(given: argparse.Namespace) -> None:
    from workbench.curation.in_and_out import export_dataset
    from workbench.data.dataset import Dataset
    from workbench.data.formats import check_format

    check_format(given.form, ("hf", *_FORMATS))
    options = {"split": given.split} if given.split else {}
    count = export_dataset(Dataset.open(given.run), given.out, format=given.form, **options)
    what = "images" if given.form in ("images", "pdf", "coco", "fiftyone") else "conversations"
    _show(given, f"written: {count} {what} to {given.out}", {"written": given.out, "count": count})


def _say_change(given: argparse.Namespace) -> None:
    """Another base answers a little differently: ask both the same held-out questions."""
    try:
        dataset = given.data or _dataset_of(given.run)
        before, after = _asked(given.run, dataset), _asked(given.out, dataset)
    except WorkbenchError as error:
        print(f"accuracy not compared ({error}); --data DATASET names a dataset with questions")
        return
    change = after.accuracy - before.accuracy
    print(f"accuracy {before.accuracy:.3f} -> {after.accuracy:.3f} ({change:+.3f}), {len(after.rows)} questions")


def _dataset_of(path: str) -> str:
    """The dataset a run trained on: its recipe's, or the one that a quickstart's report names."""
    from workbench.run import Run

    run, report = Run.open(path), Path(path, "report.json")
    try:
        return run.recipe.data.dataset
    except WorkbenchError:
        if not report.is_file():
            raise
        return json.loads(report.read_text(encoding="utf-8"))["dataset"]


def _render(given: argparse.Namespace) -> int:
    from workbench.model.render_file import render_file

    return render_file(given.file, given.template, given.tokenizer, show=given.show)


def _runs(given: argparse.Namespace) -> None:
    from workbench.run import Run, compare

    rows = compare(Run.list(given.root))
    lines = [line for row in rows for line in _run_lines(row, given.settings)]
    _show(given, "\n".join(lines) or f"no run in {given.root}", rows)


def _run_lines(row: Mapping[str, Any], settings: bool) -> list[str]:
    loss = row["metrics"].get("val_loss", row["metrics"].get("loss"))
    shown = f"{loss:.4f}" if isinstance(loss, float) else "-"
    kind, seconds = row["kind"] or "-", row["seconds"] or 0
    line = f"{row['path']:<32} {kind:<11} {row['status']:<9} {seconds:>8.0f} s  loss {shown}"
    error = [f"    {' '.join(row['error'].split())}"] if row["error"] else []
    return [line, *error, *(f"    {key}: {value}" for key, value in row["settings"].items() if settings)]


def _clean(given: argparse.Namespace) -> None:
    removed = "removed" if given.yes else "add --yes to remove"
    if given.runs is not None:
        from workbench import run

        freed = run.clean(given.runs, dry_run=not given.yes)
        text = f"{freed / 1e6:,.1f} MB of checkpoints that finished runs below {given.runs} do not need: {removed}"
        _show(given, text, {"runs": given.runs, "bytes": freed, "removed": given.yes})
        return
    sizes = resources.state_sizes(given.names)
    if given.yes:
        _stop_database(sizes)
        resources.clean_state(sizes)
    lines = [f"  {name:<24} {size / 1e6:>10,.1f} MB" for name, size in sizes.items()]
    state = resources.state_folder()
    text = "\n".join([f"{state}: {removed}", *lines]) if lines else f"{state}: empty"
    _show(given, text, {"state": str(state), "bytes": sizes, "removed": given.yes})


def _stop_database(names: Iterable[str]) -> None:
    """A database is removed only when nobody uses it."""
    if "database" not in names:
        return
    from workbench.curation import database, server

    database.stop_database()
    folder = database.database_folder()
    if server.running_process(folder) is not None:
        fix = "close FiftyOne in the other notebook or terminal first"
        raise DatabaseError(str(folder), found="a database that another process uses", fix=fix)


# --- the parser -----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="From a folder of images to a LLaVA that answers about them.",
        epilog="Start with `workbench quickstart`. `workbench VERB --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, does: Verb, help: str, *examples: str) -> argparse.ArgumentParser:
        shown = "examples:\n" + "\n".join(f"  workbench {example}" for example in examples)
        style = argparse.RawDescriptionHelpFormatter
        added = verbs.add_parser(name, help=help, description=help, epilog=shown, formatter_class=style)
        added.set_defaults(verb=does)
        return added

    _add_making(verb)
    _add_training(verb)
    _add_housekeeping(verb)
    return parser


def _add_making(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Images and conversations."""
    add = verb(
        "quickstart",
        _quickstart,
        "The whole way on drawn scenes or on your own pictures: curate, generate, train, score, report.",
        "quickstart",
        "quickstart --images holiday/ --out runs/holiday",
    ).add_argument
    add("--images", metavar="FOLDER", help="your pictures: sub-folders as classes, or a captions file beside them")
    add("--question", metavar="TEXT", help="how the class of a picture is asked for (default: What is this?)")
    add("--out", default="runs/quickstart", metavar="DIR", help="run folder (default: %(default)s)")
    add("--count", type=_positive, default=2000, metavar="N", help="how many scenes to draw (default: %(default)s)")
    add("--resume", action="store_true", help="go on with an unfinished quickstart in --out")
    _add_set(add, "train.epochs=0.5")
    add("--set-align", action="append", default=[], metavar="KEY=VALUE", help="the same for the recipe of stage 1")

    add = verb(
        "import",
        _import,
        "Read pictures, documents, conversations or annotations into a dataset folder. Pictures stay where they lie.",
        "import holiday/ --out data/holiday",
        "import reports/ --dpi 200 --out data/pages",
        "import llava_v1_5_mix665k.json --images coco/ --out data/mix",
        "import captions.json instances.json --images val2017/ --out data/coco",
        "import my-view --format fiftyone --out data/view",
    ).add_argument
    sources = "a folder of pictures or PDFs; a PDF, LLaVA, ShareGPT, COCO or Parquet file; owner/name on the Hub"
    add("source", nargs="+", metavar="SOURCE", help=f"{sources}; a FiftyOne dataset (several: COCO files)")
    add("--format", metavar="F", help="images, pdf, llava, sharegpt, coco, hf-dataset (told by content) or fiftyone")
    add("--images", metavar="FOLDER", help="where the paths in a JSON file start (default: beside the file)")
    add("--dpi", type=_positive, metavar="N", help="resolution of PDF pages (default: 150)")
    add("--name", metavar="NAME", help="what the dataset is called (default: as the source)")
    add("--out", required=True, metavar="DIR", help="the dataset folder to make")
    _add_json(add)

    add = verb(
        "curate",
        _curate,
        "Leave out broken images and copies, or what a recipe's filters find; nothing is deleted. Prints the funnel.",
        "curate data/holiday",
        "curate data/holiday --recipe curate-llava-558k --set filters.similarity=null --out funnel.html",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe of kind curate")
    _add_set(add, "filters.aspect.max=2.5")
    add("--out", metavar="FILE", help="write the funnel, with the pictures it took out, as a page (.html)")
    _add_json(add)

    add = verb(
        "open",
        _open,
        "Look at a dataset in the FiftyOne App and review its conversations there; ends with Ctrl-C.",
        "open data/holiday",
        "open data/holiday --port 5160 --no-browser",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--port", type=_positive, metavar="N", help="of this machine (default: 5151, or a free one)")
    add("--no-browser", action="store_true", help="only print the address")

    adding = verb(
        "versions",
        _versions,
        "What a dataset was and is: its snapshots as a tree, what differs between two, and the way back.",
        "versions data/holiday",
        "versions data/holiday --snapshot",
        "versions data/holiday --diff 3f2a",
        "versions data/holiday --undo",
    )
    adding.add_argument("dataset", metavar="DATASET", help="dataset folder")
    only = adding.add_mutually_exclusive_group().add_argument
    only("--snapshot", action="store_true", help="keep the present state")
    only("--diff", nargs="+", metavar="VERSION", help="what came, went and changed since one version, or between two")
    only("--undo", nargs="?", const="", metavar="VERSION", help="go back to a version (default: the last other one)")
    _add_json(adding.add_argument)

    add = verb(
        "generate",
        _generate,
        "Write conversations about a dataset's images: by rules from what is known about them, or by any teacher.",
        "generate data/holiday",
        "generate data/holiday --teacher gpt-4o-mini@https://api.openai.com/v1 --tasks conversation=2 --estimate",
        "generate data/holiday --teacher teacher.yaml --tasks reasoning --max-money 5",
        "generate data/holiday --teacher local:models/qwen-vl --tasks own.jinja --limit 20",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    teachers = "rules (no network), MODEL@URL, local:MODEL or a YAML file (default: %(default)s)"
    add("--teacher", default="rules", help=teachers)
    names = (
        "caption, conversation, detail, reasoning, short_answer, multiple_choice, grounding, refusal, or a .jinja file"
    )
    add("--tasks", nargs="+", metavar="TASK", help=f"{names}; TASK=N for N of each image (default: what fits)")
    add("--question", metavar="TEXT", help="how the class of a picture is asked for (default: What is this?)")
    add("--seed", type=int, default=0, help="another seed words other conversations (default: %(default)s)")
    add("--limit", type=_positive, metavar="N", help="the first N images only")
    add("--estimate", action="store_true", help="say calls, tokens, cost and three prompts, and ask nothing")
    add("--again", action="store_true", help="ask once more for what a check rejected")
    add("--script", default="latin", help="what answers are to be written in: latin, cjk, cyrillic, ... (%(default)s)")
    add("--prices", metavar="FILE", help="prices of teachers, laid over the shipped ones")
    _add_budget(add)
    _add_json(add)

    add = verb(
        "judge",
        _judge,
        "Have a model score a dataset's conversations from 1 to 10, and compare it with people's verdicts.",
        "judge data/holiday --judge gpt-4o@https://api.openai.com/v1 --limit 100 --max-money 1",
        "judge data/holiday --judge judge.yaml --rubric mine.jinja --reject --out scores.csv",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--judge", required=True, metavar="MODEL", help="MODEL@URL, local:MODEL or a YAML file, as a teacher is named")
    add("--rubric", metavar="FILE", help="a prompt of your own, with {{ conversation }} in it")
    add(
        "--accept-from", type=_positive, default=7, metavar="N", help="score that is good enough (default: %(default)s)"
    )
    add("--reject", action="store_true", help="reject what scores lower; what a person accepted or edited stays")
    add("--limit", type=_positive, metavar="N", help="the first N conversations only")
    add("--out", metavar="CSV", help="write id, score, verdict and reason of each there")
    add("--prices", metavar="FILE", help="prices of models, laid over the shipped ones")
    _add_budget(add)
    _add_json(add)

    add = verb(
        "render",
        _render,
        "Print the ids and labels of conversations, one JSON object each; a bad one gives its id and error.",
        "render conversations.json --template v1 --tokenizer vicuna/tokenizer.model",
        "render conversations.jsonl --template plain --tokenizer models/vicuna --show",
    ).add_argument
    add("file", metavar="FILE", help="LLaVA .json or .jsonl")
    add("--template", required=True, help="plain, v1, llava_v1, llama_2, mistral, chatml, qwen, tiny, or a YAML file")
    add("--tokenizer", required=True, metavar="DIR", help="tokenizer folder, or a sentencepiece tokenizer.model")
    add("--show", action="store_true", help="show the text on stderr too, the trained tokens in colour")


def _add_training(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Models."""
    add = verb(
        "plan",
        _plan,
        "What a recipe will train, see and take, and whether it fits, before a byte of weights is read.",
        "plan tiny-align data/holiday",
        "plan llava-1.5-7b-lora --set train.memory_gb=80 --fit",
        "plan my-recipe.yaml --dry-run --json",
    ).add_argument
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    add("dataset", nargs="?", metavar="DATASET", help="dataset folder (default: the recipe's)")
    _add_set(add, "train.memory_gb=80")
    add("--fit", action="store_true", help="choose train.pack_tokens and train.checkpointing so that it fits")
    add("--dry-run", action="store_true", help="run the worst pack in a process of its own and measure its memory")
    _add_json(add)

    add = verb(
        "train",
        _train,
        "Train one stage as a recipe says. Writes a run folder that can be resumed.",
        "train tiny-align --set data.dataset=data/holiday --out runs/align",
        "train my-recipe.yaml --set train.lr=2e-4 --set train.epochs=2 --out runs/mine --resume",
    ).add_argument
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    _add_set(add, "train.lr=2e-4")
    add("--out", required=True, metavar="DIR", help="run folder")
    add("--resume", action="store_true", help="go on with an unfinished run in --out")
    add("--background", action="store_true", help="in a process of its own that outlives this terminal")
    add("--processes", type=int, default=1, metavar="N", help="so many processes share every step, one a GPU")
    _add_json(add)

    add = verb(
        "steer",
        _steer,
        "Watch a run that another process trains, pause it, save it now, stop it, or let it go on.",
        "steer runs/mine watch",
        "steer runs/mine pause",
    ).add_argument
    add("run", metavar="RUN", help="run folder")
    add("action", choices=("watch", "pause", "resume", "save", "stop"), help="resume also starts a stopped run again")
    _add_json(add)

    add = verb(
        "losses",
        _losses,
        "The conversations that a run found hardest to learn, worst first: where bad data is found.",
        "losses runs/mine",
        "losses runs/mine --to data/holiday",
    ).add_argument
    add("run", metavar="RUN", help="run folder of a training")
    add("-n", type=_positive, default=20, metavar="N", help="show so many (default: %(default)s)")
    add("--to", metavar="DATASET", help="write them into the FiftyOne view of this dataset folder, to sort by")
    add("--out", metavar="CSV", help="write all of them there")
    _add_json(add)

    add = verb(
        "evaluate",
        _evaluate,
        "Ask a model the held-out questions of a dataset and score its answers, per question type.",
        "evaluate runs/mine data/holiday",
        "evaluate runs/mine data/holiday --split val --json --out answers.jsonl",
    ).add_argument
    _add_model(add)
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--split", default="test", choices=("train", "val", "test"), help="which images (default: %(default)s)")
    add("--tasks", nargs="+", default=["question"], metavar="TASK", help="which conversations (default: question)")
    told = "how answers are compared: exact, normalised, choice, numeric, relaxed, iou (default: %(default)s)"
    add("--scorer", default="normalised", help=told)
    add("--limit", type=_positive, metavar="N", help="the first N only")
    _add_loading(add)
    add("--out", metavar="FILE", help="write every question and answer as JSON lines")
    _add_json(add)

    add = verb(
        "score",
        _score,
        "Score answers that were made elsewhere, by a benchmark's own rule and without any model.",
        "score seedbench GPT-4V.json",
        "score pope answers.jsonl --references coco/ llava_pope_test.jsonl",
        "score mmbench llava-v1.5-13b.xlsx --json",
    ).add_argument
    add("benchmark", metavar="BENCHMARK", help="a name that `workbench benchmarks` lists")
    add("predictions", metavar="PREDICTIONS", help="json, jsonl, xlsx, tsv, csv, parquet or txt; or a folder of them")
    told = "files or folders of what is right, if the predictions do not bring it; question files too"
    add("--references", nargs="+", default=[], metavar="FILE", help=told)
    _add_json(add)

    add = verb("benchmarks", _benchmarks, "List the benchmarks and the files each needs.", "benchmarks").add_argument
    _add_json(add)

    add = verb(
        "chat",
        _chat,
        "Talk with a model in the terminal; piped questions give answers and nothing else.",
        "chat runs/quickstart --image photo.jpg",
        "chat runs/quickstart --image photo.jpg < questions.txt",
        "chat llava-hf/llava-1.5-7b-hf --load 4bit",
    ).add_argument
    _add_model(add)
    add("--image", metavar="FILE", help="show this picture with the first question")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is always the likeliest word (default: 0)")
    add("--max-tokens", type=_positive, default=512, metavar="N", help="longest answer (default: %(default)s)")
    add("--seed", type=int, help="with a temperature: the same seed gives the same answer")
    _add_loading(add)

    add = verb(
        "export",
        _export,
        "A run's best checkpoint as a standard LLaVA folder for transformers and vLLM; or a dataset in any format.",
        "export runs/mine exported --as hf",
        "export runs/mine exported --as hf --base original",
        "export data/holiday holiday.json --as llava",
        "export data/holiday holiday-hf --as hf-dataset --split train",
    ).add_argument
    add("run", metavar="RUN|DATASET", help="run folder (its best), or RUN/checkpoints/last; or dataset folder")
    add("out", metavar="OUT", help="folder to write; for llava, sharegpt, coco and pdf a file; for fiftyone a name")
    forms = f"of a run hf, a Hugging Face LLaVA (default); of a dataset {', '.join(_FORMATS)}"
    add("--as", dest="form", default="hf", metavar="F", help=forms)
    add("--split", choices=("train", "val", "test"), help="this part of a dataset only")
    bases = "merge onto the 4-bit weights it was trained on (default), or onto the original ones, and say what changes"
    add("--data", metavar="DATASET", help="with --base original: questions from here (default: the run's own dataset)")
    add("--base", default="nf4", choices=("nf4", "original"), help=bases)
    _add_json(add)


def _add_housekeeping(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """What is there, what works, what can go."""
    add = verb("runs", _runs, "List and compare run folders.", "runs", "runs experiments/ --settings").add_argument
    add("root", nargs="?", default="runs", metavar="ROOT", help="where to look (default: %(default)s)")
    add("--settings", action="store_true", help="show the settings in which the runs differ")
    _add_json(add)

    add = verb(
        "clean",
        _clean,
        "Show how much the state folder holds, and empty it; or trim the checkpoints of finished runs.",
        "clean",
        "clean datasets --yes",
        "clean --runs runs --yes",
    ).add_argument
    add("names", nargs="*", metavar="NAME", help="entries of the state folder (default: all)")
    add("--runs", metavar="ROOT", help="instead: keep only the best checkpoint of each finished run below ROOT")
    add("--yes", action="store_true", help="really remove; without it only sizes are shown")
    _add_json(add)

    add = verb("doctor", _doctor, "What works on this machine, and what to do about the rest.", "doctor").add_argument
    _add_json(add)


def _add_model(add: Callable[..., Any]) -> None:
    add("model", metavar="MODEL", help="run folder (its best), RUN/checkpoints/last, LLaVA folder, or Hub name")


def _add_loading(add: Callable[..., Any]) -> None:
    formats = ("4bit", "8bit", "bf16", "fp16", "fp32")
    add("--load", choices=formats, help="number format of the weights (default: as saved)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: %(default)s)")


def _add_set(add: Callable[..., Any], example: str) -> None:
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=f"change the recipe, for example {example}")


def _add_budget(add: Callable[..., Any]) -> None:
    add("--max-money", type=float, metavar="USD", help="stop before more is spent")
    add("--max-tokens", type=_positive, metavar="N", help="stop before more tokens are used")
    add("--max-calls", type=_positive, metavar="N", help="stop after so many calls")
    add("--max-seconds", type=float, metavar="S", help="ask nothing new after so many seconds")


def _add_json(add: Callable[..., Any]) -> None:
    add("--json", action="store_true", help="print JSON for a program to read")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
