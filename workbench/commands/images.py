"""Images: in and out of the house, cleaned, looked at, kept in versions."""

from __future__ import annotations

import argparse

from workbench.commands.common import AddVerb, add_json, add_set, positive, show
from workbench.errors import DataError


def _import(given: argparse.Namespace) -> None:
    from workbench.curation.in_and_out import import_dataset
    from workbench.data.imported import read_report

    source = given.source if len(given.source) > 1 else given.source[0]
    asked = {"images": given.images, "dpi": given.dpi, "name": given.name}
    options = {key: value for key, value in asked.items() if value is not None}
    dataset = import_dataset(source, given.out, format=given.format, **options)
    card = dataset.card
    following = "curate" if card["counts"]["conversations"] else "generate"
    told = f"next: workbench {following} {given.out}"
    counts = card["counts"]
    if following == "generate" and counts.get("videos") and not counts["images"]:
        told = (
            f"next: workbench open {given.out}; nothing is generated about videos: conversations about them come with"
        )
        told += " a LLaVA or ShareGPT file (workbench import FILE.json)"
    if not card["counts"]["status"].get("ok"):
        what = "picture or video" if card["counts"].get("videos") else "picture"
        told = f"no {what} in {given.out} can be used"
    show(given, told, {"dataset": str(dataset.path), "counts": card["counts"], "report": read_report(dataset)})


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
    show(given, f"{funnel}{page}", funnel.table.to_dicts())


def _split(given: argparse.Namespace) -> None:
    from workbench.curation.splits import split
    from workbench.data.dataset import Dataset

    rest = round(1 - given.val - given.test, 9)  # 1 - 0.7 - 0.3 is a little more than nothing
    fractions = {"train": rest, "val": given.val, "test": given.test}
    chosen = split(Dataset.open(given.dataset), fractions, seed=given.seed, stratify=given.stratify)["split"].to_list()
    if not chosen:
        raise DataError(given.dataset, found="no image or video that is ok", expected="some to part")
    counts = {name: chosen.count(name) for name in fractions}
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    show(given, f"{told} (images and videos)\nnext: workbench plan RECIPE {given.dataset}", counts)


def _open(given: argparse.Namespace) -> None:
    import threading

    options = {"port": given.port, "browser": not given.no_browser}
    if given.results:
        from workbench.curation.showing import show as show_results

        show_results(given.results, given.dataset, **options)
    else:
        from workbench.curation.app import open

        open(given.dataset, **options)
    print("Ctrl-C closes it", flush=True)
    try:
        while not threading.Event().wait(0.5):  # a wait without an end is not always interrupted
            pass
    finally:
        from workbench.curation.refresh import take_in

        take_in(given.dataset)


def _versions(given: argparse.Namespace) -> None:
    from workbench.data.dataset import Dataset

    dataset = Dataset.open(given.dataset)
    if given.snapshot:
        version = dataset.snapshot()
        show(given, f"kept as {version}", {"version": version})
    elif given.undo is not None:
        version = dataset.undo(given.undo or None)
        told = f"back at {version}\nnext: workbench versions {given.dataset} --undo brings back what was there before"
        show(given, told, {"version": version})
    elif given.diff:
        if len(given.diff) > 2:
            raise DataError("--diff", found=f"{len(given.diff)} versions", expected="one, or two")
        difference = dataset.diff(*given.diff)
        show(given, difference, difference.summary())
    else:
        show(given, dataset.lineage, dataset.lineage)


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
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
    add("--dpi", type=positive, metavar="N", help="resolution of PDF pages (default: 150)")
    add("--name", metavar="NAME", help="what the dataset is called (default: as the source)")
    add("--out", required=True, metavar="DIR", help="the dataset folder to make")
    add_json(add)

    add = verb(
        "curate",
        _curate,
        "Leave out broken images and copies, or what a recipe's filters find; nothing is deleted. Prints the funnel.",
        "curate data/holiday",
        "curate data/holiday --recipe curate-llava-558k --set filters.similarity=null --out funnel.html",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add("--recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe of kind curate")
    add_set(add, "filters.aspect.max=2.5")
    add("--out", metavar="FILE", help="write the funnel, with the pictures it took out, as a page (.html)")
    add_json(add)

    add = verb(
        "split",
        _split,
        "Keep pictures and videos apart for validation and test, copies and what is talked about together on one side.",
        "split data/holiday",
        "split data/holiday --val 0.05 --test 0.2 --seed 1 --stratify label",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder; splits that it has are replaced")
    add("--val", type=float, default=0.1, metavar="PART", help="share that is validated on (default: %(default)s)")
    add("--test", type=float, default=0.1, metavar="PART", help="share kept for `evaluate` (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed parts them alike (default: %(default)s)")
    add("--stratify", choices=["label"], help="part each class in these shares, too")
    add_json(add)

    add = verb(
        "open",
        _open,
        "Look at a dataset in the FiftyOne App and review its conversations there; ends with Ctrl-C.",
        "open data/holiday",
        "open data/holiday --results results/tuned",
        "open data/holiday --port 5160 --no-browser",
    ).add_argument
    add("dataset", metavar="DATASET", help="dataset folder")
    add(
        "--results",
        metavar="RESULTS",
        help="show exactly the pictures that these results failed on, with what was said",
    )
    add("--port", type=positive, metavar="N", help="of this machine (default: 5151, or a free one)")
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
    add_json(adding.add_argument)
