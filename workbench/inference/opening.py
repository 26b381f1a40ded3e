"""One way to open anything that answers, told by what it is.

Knows: run folders, checkpoints and LLaVA folders of ours, of Hugging Face or of LLaVA's own (`Engine`), other
vision-language models of transformers (`VisionLanguageModel`), names on the Hub of either, and `MODEL@URL`
(`RemoteModel`).
Does not know: how any of them answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat_model import ChatModel
from workbench.errors import ModelError, kind_of
from workbench.inference.attachments import open_file
from workbench.resources import expanded

if TYPE_CHECKING:
    pass


_REMOTE = re.compile(r"(?P<model>[^@]+)@(?P<url>https?://.+)")


def open_model(
    name: str | Path | ChatModel,
    *,
    load: str | None = None,
    device: str = "auto",
    open_image: Callable[[Any], Any] = open_file,
    adapter: str | Path | None = None,
) -> ChatModel:
    """What answers under `name`.

    name: a run folder (its best checkpoint), a checkpoint, a LLaVA folder, another vision-language model's folder, a
    name on the Hub, or `MODEL@URL` of an OpenAI-compatible endpoint (key from `$OPENAI_API_KEY`).
    load: the number format of the weights (fp32, bf16, fp16, 8bit, 4bit); as saved by default. adapter: another run
    on the same base whose adapter and projector are put on; for a model that is no LLaVA, a folder with a peft adapter
    of it. What answers already is given back. Raises `ModelError` or `CheckpointError` for what is not there or cannot
    answer.

    >>> model = wb.open_model("runs/align")
    >>> model.name
    'align'
    """
    if not isinstance(name, (str, Path)):
        return as_model(name)
    remote = _REMOTE.fullmatch(str(name))
    if remote is not None:
        return _remote(str(name), remote["model"], remote["url"], load, open_image, adapter)
    from workbench.model.sources import check_there, resolve

    check_there(name)
    from workbench.model import checkpoint, hf_folder  # torch and transformers: only where a model is really loaded
    from workbench.model.original import layout_of

    folder = expanded(name, ModelError) if layout_of(name) else resolve(name)
    ours = (folder / "run.json").is_file() or (folder / checkpoint.MANIFEST).is_file()
    shown = Path(name).name or str(name)
    if not (ours or hf_folder.is_llava(folder) or layout_of(folder)):
        from workbench.inference.vlm import VisionLanguageModel

        return VisionLanguageModel(folder, load=load, device=device, open_image=open_image, adapter=adapter, name=shown)
    from workbench.inference.engine import Engine

    engine = Engine(
        checkpoint.load_any(name, load=load, dtype="auto", device=device), open_image=open_image, name=shown
    )
    return engine if adapter is None else engine.adapted(adapter)


def as_model(model: ChatModel) -> ChatModel:
    """The model, if it answers. Raises `ModelError` for anything else."""
    if not hasattr(model, "reply") or not hasattr(model, "name"):
        expected = "a model that answers, a run folder, a LLaVA folder, a Hub name or MODEL@URL"
        raise ModelError("model", found=kind_of(model), expected=expected)
    return model


def open_beside(
    model: ChatModel,
    other: str | Path | None = None,
    *,
    load: str | None = None,
    device: str = "auto",
    open_image: Callable[[Any], Any] = open_file,
) -> ChatModel:
    """What to compare `model` with: `other`, which shares the weights of `model` where both lie on one base.

    Without `other`, the model before its run trained it. Raises `ModelError` where that is not known, and as
    `open_model` does.
    """
    from workbench.inference.engine import Engine

    if isinstance(model, Engine):
        if other is None:
            return model.base()
        with suppress(ModelError):  # on another base: then it is a model of its own
            return model.adapted(other)
    if other is None:
        raise ModelError(model.name, found="a model that no run of ours trained", fix="name one to compare it with")
    return open_model(other, load=load, device=device, open_image=open_image)


def _remote(
    name: str, model: str, url: str, load: str | None, open_image: Callable[[Any], Any], adapter: object
) -> ChatModel:
    from workbench.remote import RemoteModel

    for what, value in (("load", load), ("adapter", adapter)):
        if value is not None:
            raise ModelError(name, found=f"{what} {value}", expected="none for a model that runs elsewhere")
    return RemoteModel(model, url=url, open_image=open_image)


def as_letters(model: ChatModel) -> ChatModel:
    """`model`, reading a control token that somebody writes, or that it wrote itself, as letters where it can.

    For talks: a person cannot put right what stands in an earlier answer.
    """
    if hasattr(model, "literal_text"):
        model.literal_text = True
    return model
