"""`workbench demo`: any model that answers, or two side by side, on the page that exported demos have too.

Knows: how a `ChatModel` becomes a model of the page, where examples come from, and which mistakes are told how.
Does not know: the page itself (`demo/`), or how answers are made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Media, Video, from_chat
from workbench.data.images import load_image, read_file
from workbench.data.video import Film, frame_at, moments
from workbench.errors import WorkbenchError
from workbench.inference.attachments import FRAMES, TrackedOpener, file_state, frames_read

if TYPE_CHECKING:
    import gradio
    from PIL.Image import Image as Picture

    from workbench.serving.demo.turns import Settings

PORTS = range(7860, 7960)
"""Where a free one is looked for unless a person names one."""
EXAMPLES = 6
FEEDBACK = "demo-feedback"


class PageModel:
    """A `ChatModel`, or what opens under a name, as the page wants it: files by path, failures in plain words."""

    concurrent = 8

    def __init__(self, model: str | Path | ChatModel, *, load: str | None = None, device: str = "auto") -> None:
        from workbench.inference.opening import as_letters, as_model, open_model

        self.image_modes: tuple[str, ...] = ()
        if isinstance(model, (str, Path)):
            self.model: ChatModel = open_model(
                model, load=load, device=device, open_image=TrackedOpener(self._open, file_state)
            )
            self.image_modes = self._modes()
        else:
            self.model = as_model(model)
        as_letters(self.model)
        self.name = self.model.name

    def answer(self, messages: list[dict[str, Any]], settings: Settings) -> Generator[str, None, str | None]:
        """See `demo.turns.Model`."""
        from workbench.serving.demo.turns import NotAnswered

        try:
            answer = self.model.reply(self._conversation(messages, settings), _options(settings))
            try:
                yield from answer
            finally:
                answer.cancel()
        except WorkbenchError as error:
            raise NotAnswered(f"{error}.") from error
        cut = "cut after " if answer.finish_reason == "length" else ""
        return f"{cut}{answer.usage.completion_tokens} tokens"

    def _conversation(self, messages: list[dict[str, Any]], settings: Settings) -> Conversation:
        """The pictures' root names the image mode: that is all an image carries to where it is opened."""
        root = settings.image_mode or ""
        shown = [{**one, "content": [new for part in one["content"] for new in self._parts(part, root)]}
                 for one in messages]  # fmt: skip
        return from_chat(shown, id="this conversation")

    def _parts(self, part: dict[str, Any], root: str) -> list[dict[str, Any]]:
        """A part of a message as the model is given it: a video as frames, where it reads pictures only."""
        if part["type"] == "video" and not frames_read(self.model):
            path = part["path"]
            return [{"type": "image", "path": f"{path}#t={moment:.3f}", "root": root}
                    for moment in moments(read_file(Path(path)), FRAMES)]  # fmt: skip
        return [part if part["type"] == "text" else {**part, "root": root if part["type"] == "image" else ""}]

    def _open(self, image: Media) -> Picture | Film:
        path, _, moment = image.path.partition("#t=")
        data = read_file(Path(path))
        if isinstance(image, Video):
            return Film(data, Path(path).name)  # where it lies here is nothing to the person who asks
        picture = frame_at(data, float(moment)) if moment else load_image(data, where=Path(path).name)
        if image.root in self.image_modes[1:]:  # made square here, the model's own mode finds nothing left to do
            return _mode(self.model, image.root).square(picture)
        return picture

    def _modes(self) -> tuple[str, ...]:
        from workbench.model.images import MODES

        llava = getattr(self.model, "llava", None)
        if llava is None:
            return ()
        own = llava.image_mode
        if llava.tiling.varies or (own.mode == "crop" and own.shortest != own.side):
            return (own.mode,)  # a square picture would be cropped once more, or cut into other tiles
        return (own.mode, *(mode for mode in MODES if mode != own.mode))


def _mode(model: Any, name: str) -> Any:
    from workbench.model.images import ImageMode

    return ImageMode(name, model.llava.spec["image_settings"])


def _options(settings: Settings) -> SamplingOptions:
    return SamplingOptions(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=settings.seed
    )


def demo(
    model: str | Path | ChatModel,
    *,
    compare: str | Path | ChatModel | None = None,
    port: int | None = None,
    load: str | None = None,
    device: str = "auto",
    examples: int = EXAMPLES,
    feedback: str | Path = FEEDBACK,
    block: bool = True,
) -> gradio.Blocks:
    """Talk with a model in a browser, on this machine only, until Ctrl-C.

    model, compare: a run folder, a checkpoint, a LLaVA folder, a Hub name, MODEL@URL, or a model; with `compare` both
    answer side by side. examples: at most so many pictures of the run's validation set, with their questions.
    feedback: a folder for votes and flags (`feedback.jsonl`, LLaVA's JSON lines). With `block=False` it returns at
    once, and `.close()` ends it. Raises `WorkbenchError` where the port is taken, and what loading a model raises.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    chosen = _free_port() if port is None else _check_port(port)
    models = [PageModel(one, load=load, device=device) for one in (model, compare) if one is not None]
    from workbench.serving.demo.feedback import Feedback
    from workbench.serving.demo.page import build, launch
    from workbench.serving.examples import validation_examples

    kept = Feedback(Path(feedback).absolute())
    title = " and ".join(dict.fromkeys(one.name for one in models))
    page = build(
        models, title=title, about="Answers come from a model and may be wrong.", feedback=kept,
        examples=validation_examples(model, examples) if isinstance(model, (str, Path)) else [],
    )  # fmt: skip
    url = launch(page, host="127.0.0.1", port=chosen, block=False)
    print(f"demo of {title} at {url} (Ctrl-C ends it); votes and flags go to {kept.path}", flush=True)
    if block:
        with suppress(KeyboardInterrupt):
            page.block_thread()
        page.close(verbose=False)
    return page


def _free_port() -> int:
    for port in PORTS:
        with suppress(WorkbenchError):
            return _check_port(port)
    raise WorkbenchError("demo", found=f"no free port from {PORTS[0]} to {PORTS[-1]}", fix="name one with --port")


def _check_port(port: int) -> int:
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        fix = "choose another, or leave it out"
        raise WorkbenchError(f"port {port}", found=getattr(error, "strerror", "") or str(error), fix=fix) from None
    return port
