"""Giving a model away: a demo here or elsewhere, a hand-over to vLLM, and whether a server keeps to its word."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from workbench.commands.common import AddVerb, add_json, add_loading, add_model, positive, show

EXAMPLES = 6
FORMS = ("demo", "vllm")
"""What a run is exported as, beside `hf`."""


def _demo(given: argparse.Namespace) -> None:
    from workbench.serving.demo_run import demo

    settings = {"port": given.port, "load": given.load, "device": given.device, "feedback": given.feedback}
    demo(given.model, compare=given.compare, examples=given.examples, **settings)


def _conformance(given: argparse.Namespace) -> int:
    from workbench.serving.conformance import conformance

    report = conformance(given.url, model=given.model, api_key=given.api_key)
    show(given, report, report.summary())
    return 0 if report.passed else 1


def export_run(given: argparse.Namespace) -> None:
    """`export` for the forms of this module."""
    from workbench.serving.export_demo import export_demo
    from workbench.serving.export_vllm import export_vllm

    if given.form == "demo":
        written = export_demo(given.run, given.out, weights=given.weights, examples=given.examples)
        told = f"written: {written}\n  cd {written} && pip install -r requirements.txt && python app.py"
        count = len(list(written.glob("examples/*")))
        if count:
            told += f"\n  {count} pictures of the validation set are in it, no videos; --examples 0 leaves them out"
    else:
        written = export_vllm(given.run, given.out, base=given.base)
        told = f"written: {written}; serve.sh starts vLLM, README.md says how, workbench conformance URL checks it"
    show(given, told, {"written": str(written)})


def add_export(add: Callable[..., Any]) -> None:
    """The arguments of `export` for these forms."""
    weights = "of a demo or in LLaVA's layout: merged into one model (default), the adapter beside its base, "
    weights += "or in LLaVA's layout the projector alone"
    add("--weights", default="merged", choices=("merged", "adapter", "projector"), help=weights)
    add_examples(add)


def add_examples(add: Callable[..., Any]) -> None:
    told = "at most so many pictures (no videos) of the validation set in a demo (default: %(default)s)"
    add("--examples", type=int, default=EXAMPLES, metavar="N", help=told)


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "demo",
        _demo,
        "Talk with a model in the browser, or with two side by side; on this machine only, until Ctrl-C.",
        "demo runs/mine",
        "demo runs/mine --compare runs/align",
        "demo llava-hf/llava-1.5-7b-hf --load 4bit --port 7870",
    ).add_argument
    add_model(add)
    add("--compare", metavar="OTHER", help="a second model, which answers the same questions beside the first")
    add("--port", type=positive, metavar="N", help="port of 127.0.0.1 (default: the first free one from 7860)")
    add("--feedback", default="demo-feedback", metavar="FOLDER", help="for votes and flags (default: %(default)s)")
    add_examples(add)
    add_loading(add)

    add = verb(
        "conformance",
        _conformance,
        "Ask any OpenAI-compatible server what clients rely on, and say what it does not keep to.",
        "conformance http://127.0.0.1:8000/v1",
        "conformance http://127.0.0.1:8000/v1 --model mine --api-key $KEY --json",
    ).add_argument
    add("url", metavar="URL", help="the server's address, with /v1")
    add("--model", help="its name there (default: the first that the server lists)")
    add("--api-key", metavar="KEY", help="default: $OPENAI_API_KEY, if it is set")
    add_json(add)
