"""What a model is for: chat, and leaving the house."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands import giving
from workbench.commands.common import FORMATS, AddVerb, add_json, add_loading, add_model, dataset_of, positive, show
from workbench.commands.scoring import asked_of
from workbench.errors import DataError, WorkbenchError

OF_MODELS = ("run.json", "checkpoint.json", "config.json", "adapter_config.json", "mm_projector.bin")
"""One of them lies in every folder of a model; a folder without any is taken for pictures or a dataset."""


def _chat(given: argparse.Namespace) -> int:
    from workbench.chat_model import SamplingOptions
    from workbench.inference.chat import chat

    options = SamplingOptions(temperature=given.temperature, max_tokens=given.max_tokens, seed=given.seed)
    compare = given.compare == "" or given.compare or False  # alone it is the base
    more = {"image": given.image, "compare": compare, "load": given.load, "device": given.device}
    return 0 if chat(given.model, options=options, **more) else 1


def _export(given: argparse.Namespace) -> None:
    dataset = Path(given.run, "card.yaml").is_file()
    pictures = Path(given.run).is_dir() and not any(Path(given.run, name).exists() for name in OF_MODELS)
    if given.form not in ("hf", *giving.FORMS) and (dataset or pictures or given.form != "llava"):
        return _export_dataset(given)
    if dataset:
        fix = "--as llava, sharegpt, coco, hf-dataset, images, pdf or fiftyone"
        raise DataError(
            given.run, found="a dataset", expected=f"with --as {given.form} the run folder of a model", fix=fix
        )
    if given.form in giving.FORMS:
        return giving.export_run(given)
    from workbench.serving.export_model import export, export_original, processor_note

    more = {"base": given.base, "vision_tower": given.vision_tower, "template": given.template}
    if given.form == "llava":
        written = export_original(given.run, given.out, weights=given.weights, **more)
    else:
        written = export(given.run, given.out, **more)
    note = processor_note(written)
    show(given, f"written: {written}{f'; {note}' if note else ''}", {"written": str(written)})
    if given.base == "original":
        _say_change(given)


def _export_dataset(given: argparse.Namespace) -> None:
    from workbench.curation.in_and_out import export_dataset
    from workbench.data.dataset import Dataset
    from workbench.data.formats import check_format

    check_format(given.form, ("hf", *giving.FORMS, *FORMATS))
    options = {"split": given.split} if given.split else {}
    count = export_dataset(Dataset.open(given.run), given.out, format=given.form, **options)
    what = "images" if given.form in ("images", "pdf", "coco", "fiftyone") else "conversations"
    show(given, f"written: {count} {what} to {given.out}", {"written": given.out, "count": count})


def _say_change(given: argparse.Namespace) -> None:
    """Another base answers a little differently: ask both the same held-out questions."""
    try:
        dataset = given.data or dataset_of(given.run)
        before, after = asked_of(given.run, dataset), asked_of(given.out, dataset)
    except WorkbenchError as error:
        print(f"accuracy not compared ({error}); --data DATASET names a dataset with questions")
        return
    change = after.accuracy - before.accuracy
    print(f"accuracy {before.accuracy:.3f} -> {after.accuracy:.3f} ({change:+.3f}), {len(after.rows)} questions")


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "chat",
        _chat,
        "Talk with a model in the terminal; piped questions give answers and nothing else.",
        "chat runs/quickstart --image photo.jpg",
        "chat runs/quickstart --image photo.jpg < questions.txt",
        "chat runs/quickstart --image photo.jpg --compare",
        "chat llava-hf/llava-1.5-7b-hf --load 4bit",
    ).add_argument
    add_model(add)
    told = "shown with the first question: a picture, a PDF file, a video; may come several times"
    add("--image", metavar="FILE", action="append", help=told)
    told = "ask this model the same; without MODEL the base that a run trained on, which shares its weights"
    add("--compare", metavar="MODEL", nargs="?", const="", help=told)
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is always the likeliest word (default: 0)")
    add("--max-tokens", type=positive, default=512, metavar="N", help="longest answer (default: %(default)s)")
    add("--seed", type=int, help="with a temperature: the same seed gives the same answer")
    add_loading(add)

    add = verb(
        "export",
        _export,
        "A model in another layout, as a demo to give away or a hand-over to vLLM; or a dataset in any format.",
        "export runs/mine exported --as hf",
        "export runs/mine exported --as hf --base original",
        "export runs/mine my-demo --as demo",
        "export runs/mine my-demo --as demo --weights adapter --examples 0",
        "export runs/mine for-vllm --as vllm",
        "export llava-v1.5-7b llava-hf --as hf --vision-tower clip-vit-large-patch14-336",
        "export llava-v1.5-7b-lora llava-hf --as hf --base vicuna-7b-v1.5 --vision-tower clip-vit-large-patch14-336",
        "export runs/mine my-llava --as llava",
        "export data/holiday holiday.json --as llava",
        "export data/holiday holiday-hf --as hf-dataset --split train",
    ).add_argument
    told = "run folder (its best), RUN/checkpoints/last, LLaVA folder (transformers' or LLaVA's own); or dataset folder"
    add("run", metavar="RUN|DATASET", help=told)
    add("out", metavar="OUT", help="folder to write; for llava, sharegpt, coco and pdf a file; for fiftyone a name")
    forms = "of a model hf, a Hugging Face LLaVA (default), llava, LLaVA's own layout, demo, a Gradio app that runs "
    forms += "alone, or vllm, a hand-over; "
    forms += f"of a dataset {', '.join(FORMATS)}"
    add("--as", dest="form", default="hf", metavar="F", help=forms)
    add("--split", choices=("train", "val", "test"), help="this part of a dataset only")
    bases = "nf4: merge onto the 4-bit weights it was trained on (default); original: onto those before, and say what "
    bases += "changes; for LoRA weights or a projector of LLaVA's own: the language model or LLaVA they were trained on"
    add("--data", metavar="DATASET", help="with --base original: questions from here (default: the run's own dataset)")
    add("--base", default="nf4", metavar="nf4|original|DIR", help=bases)
    add("--vision-tower", metavar="DIR", help="the tower of a checkpoint of LLaVA's own (default: what it names)")
    add("--template", metavar="NAME", help="the prompt template of a model that does not say it")
    giving.add_export(add)
    add_json(add)
