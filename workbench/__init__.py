"""Fine-tune LLaVA on your own images: curate, instruct, train, evaluate, chat, export.

Knows: the public names and where each lives. A name loads its room on first use, so `import workbench` is quick and
pulls in neither torch nor fiftyone.
Does not know: anything else.

>>> import workbench as wb
>>> run = wb.train(wb.Recipe.load("tiny-align"), out="runs/align")  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# bitsandbytes regrets, when it is imported, a download that would make 4-bit products faster on some CPUs and that we
# never want. Whoever imports it first, this package has been imported before.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
# DeepSpeed tells everyone who has it installed which device it would use, as soon as peft looks for it.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to" not in str(record.msg))

_HOMES = {
    "Conversation": "conversation",
    "Message": "conversation",
    "Image": "conversation",
    "Video": "conversation",
    "WorkbenchError": "errors",
    "Recipe": "recipe",
    "Run": "run",
    "worst": "training.worst",
    "compare": "run",
    "clean": "run",
    "SamplingOptions": "chat_model",
    "ScriptedModel": "chat_model",
    "Dataset": "data.dataset",
    "scenes": "data.scene_files:make",
    "import_dataset": "curation.in_and_out",
    "export_dataset": "curation.in_and_out",
    "import_folder": "data.formats",
    "import_llava": "data.formats",
    "export_llava": "data.formats",
    "Renderer": "model.renderer",
    "load_template": "model.templates",
    "render": "model.render_file:render_file",
    "build": "model.llava",
    "load": "model.llava",
    "export": "serving.export_model",
    "export_original": "serving.export_model",
    "Engine": "inference.engine",
    "demo": "serving.demo_run",
    "export_demo": "serving.export_demo",
    "export_vllm": "serving.export_vllm",
    "conformance": "serving.conformance",
    "open_model": "inference.opening",
    "chat": "widgets.chat",
    "tokens": "widgets.tokens",
    "gallery": "widgets.gallery",
    "heatmap": "widgets.heatmap",
    "compare_answers": "widgets.votes",
    "compare_models": "evaluation.side_by_side",
    "cards": "training.cards",
    "serve": "serving.run",
    "Server": "serving.run",
    "describe": "curation.describe",
    "curate": "curation.filters",
    "CurateRecipe": "curation.curate_recipe",
    "image_measures": "curation.image_measures",
    "outliers": "curation.outliers",
    "split": "curation.splits",
    "check_leakage": "curation.splits",
    "check_benchmark": "curation.splits",
    "conversations": "curation.review",
    "open": "curation.app",
    "take_in": "curation.refresh",
    "write_losses": "curation.losses",
    "write_results": "curation.scores",
    "show": "curation.showing",
    "search": "curation.search",
    "caption_similarity": "curation.search",
    "RemoteModel": "remote",
    "generate": "instruct.generator",
    "estimate": "instruct.generator",
    "show_prompt": "instruct.generator",
    "Budget": "instruct.limits",
    "add_task": "instruct.tasks",
    "add_check": "instruct.checks",
    "explain": "instruct.explain",
    "judge": "instruct.judge",
    "judge_dataset": "instruct.judging",
    "describe_conversations": "instruct.diversity",
    "train": "background",
    "attach": "background",
    "plan": "training.plan",
    "evaluate": "evaluation.task",
    "slices": "evaluation.slice_scores",
    "compare_results": "evaluation.slice_scores",
    "confusion": "evaluation.confusion",
    "covered": "evaluation.coverage",
    "report": "evaluation.report",
    "judge_answers": "evaluation.judges",
    "prefer": "evaluation.preferences",
    "score_judged": "evaluation.judged",
    "diff": "evaluation.diff",
    "Results": "evaluation.results",
    "score": "evaluation.score",
    "benchmarks": "evaluation.benchmarks:listing",
    "quickstart": "quickstart",
    "doctor": "doctor",
}

__all__ = ["__version__", *(name for name in _HOMES if name != "open")]  # a star import must not hide the builtin

if TYPE_CHECKING:
    from workbench.background import attach, train
    from workbench.chat_model import SamplingOptions, ScriptedModel
    from workbench.conversation import Conversation, Image, Message, Video
    from workbench.curation.app import open
    from workbench.curation.curate_recipe import CurateRecipe
    from workbench.curation.describe import describe
    from workbench.curation.filters import curate
    from workbench.curation.image_measures import image_measures
    from workbench.curation.in_and_out import export_dataset, import_dataset
    from workbench.curation.losses import write_losses
    from workbench.curation.outliers import outliers
    from workbench.curation.refresh import take_in
    from workbench.curation.review import conversations
    from workbench.curation.scores import write_results
    from workbench.curation.search import caption_similarity, search
    from workbench.curation.showing import show
    from workbench.curation.splits import check_benchmark, check_leakage, split
    from workbench.data.dataset import Dataset
    from workbench.data.formats import export_llava, import_folder, import_llava
    from workbench.data.scene_files import make as scenes
    from workbench.doctor import doctor
    from workbench.errors import WorkbenchError
    from workbench.evaluation.benchmarks import listing as benchmarks
    from workbench.evaluation.confusion import confusion
    from workbench.evaluation.coverage import covered
    from workbench.evaluation.diff import diff
    from workbench.evaluation.judged import score_judged
    from workbench.evaluation.judges import judge_answers
    from workbench.evaluation.preferences import prefer
    from workbench.evaluation.report import report
    from workbench.evaluation.results import Results
    from workbench.evaluation.score import score
    from workbench.evaluation.side_by_side import compare_models
    from workbench.evaluation.slice_scores import compare_results, slices
    from workbench.evaluation.task import evaluate
    from workbench.inference.engine import Engine
    from workbench.inference.opening import open_model
    from workbench.instruct.checks import add_check
    from workbench.instruct.diversity import describe_conversations
    from workbench.instruct.explain import explain
    from workbench.instruct.generator import estimate, generate, show_prompt
    from workbench.instruct.judge import judge
    from workbench.instruct.judging import judge_dataset
    from workbench.instruct.limits import Budget
    from workbench.instruct.tasks import add_task
    from workbench.model.llava import build, load
    from workbench.model.render_file import render_file as render
    from workbench.model.renderer import Renderer
    from workbench.model.templates import load_template
    from workbench.quickstart import quickstart
    from workbench.recipe import Recipe
    from workbench.remote import RemoteModel
    from workbench.run import Run, clean, compare
    from workbench.serving.conformance import conformance
    from workbench.serving.demo_run import demo
    from workbench.serving.export_demo import export_demo
    from workbench.serving.export_model import export, export_original
    from workbench.serving.export_vllm import export_vllm
    from workbench.serving.run import Server, serve
    from workbench.training.cards import cards
    from workbench.training.plan import plan
    from workbench.training.worst import worst
    from workbench.widgets.chat import chat
    from workbench.widgets.gallery import gallery
    from workbench.widgets.heatmap import heatmap
    from workbench.widgets.tokens import tokens
    from workbench.widgets.votes import compare_answers


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from difflib import get_close_matches

        near = "" if name.startswith("_") else "".join(get_close_matches(name, _HOMES, 1))
        hint = f"; did you mean {near}?" if near else ""
        raise AttributeError(f"module 'workbench' has no attribute {name!r}{hint}")
    module, _, known_as = _HOMES[name].partition(":")
    value = getattr(import_module(f"workbench.{module}"), known_as or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names alone, whatever was imported meanwhile; `open` is not among `__all__`."""
    return sorted({*_HOMES, *(name for name in globals() if name.startswith("__"))})


class _Package(ModuleType):
    """Keeps `workbench.quickstart` and `workbench.doctor` the functions after their modules of that name were imported.

    The import system binds a submodule to its package; for a public name that would hide the function. The modules
    stay reachable: `from workbench.doctor import ...` looks them up in `sys.modules`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
