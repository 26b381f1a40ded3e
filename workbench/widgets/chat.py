"""A chat in a notebook: ask with pictures, read while it is written, stop, ask again, compare, keep what is good.

Knows: what the browser asks for and is told, uploads in parts, and whether a notebook is there at all.
Does not know: how a chat goes on (`session.py`), looks (`chat.js`, `chat.css`), is kept (`data/adopt.py`).

A growing chat is not sent again and again: `exchanges` changes in place, and the browser is told the one exchange, or
the few words, that are new.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from workbench.chat_model import ChatModel, SamplingOptions, as_options
from workbench.conversation import Conversation, Media
from workbench.data.adopt import adopt
from workbench.data.images import LIMITS, thumbnail_uri
from workbench.data.video import still
from workbench.errors import DataError, WorkbenchError
from workbench.inference import chat as terminal
from workbench.inference.attachments import Attached, listed, open_file, uploaded
from workbench.inference.opening import as_letters, as_model, open_beside, open_model
from workbench.progress import in_notebook
from workbench.widgets.base import View, front
from workbench.widgets.session import Exchange, Session
from workbench.widgets.static import page

SIDE = 320
"""Pixels of the pictures in a chat at most."""
SHOWN_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")


class ChatView(View):
    """The widget. `conversation()` gives what was said as data; a later cell that ends with the chat shows it again."""

    _esm, _css = front("markdown", "chat")
    ACTIONS = (
        "ask", "edit", "regenerate", "stop", "attach", "upload", "detach", "set", "clear", "restore", "save",
    )  # fmt: skip
    names: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """Of the models, as they stand side by side."""
    exchanges: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """{question, pictures: [{name, picture}], replies: [`Reply.shown`]}; changes in place, see above."""
    waiting: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """Pictures that go with the next question."""
    options = traitlets.Dict().tag(sync=True)
    earlier: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """First questions of the chats before this one."""
    dataset = traitlets.Unicode().tag(sync=True)
    """Where good exchanges are put."""
    saved = traitlets.Unicode().tag(sync=True)
    """What was last put there."""

    def __init__(
        self,
        models: Sequence[ChatModel],
        *,
        options: SamplingOptions | Mapping[str, Any] = terminal.LONG,
        dataset: str | Path | None = None,
    ) -> None:
        """models: asked the same, side by side. dataset: the folder that "Save" puts exchanges in."""
        self.session = Session(models, self._heard, as_options(options))
        self._telling = threading.RLock()
        self._uploads: dict[str, bytearray] = {}
        self._small: dict[Media, str] = {}
        super().__init__(names=[model.name for model in models], dataset=str(dataset or ""), exchanges=[])
        self._tell()

    def __repr__(self) -> str:
        return f"chat with {' and '.join(self.names)}: {len(self.session.exchanges)} questions"

    def conversation(self, model: int = 0) -> Conversation:
        """What was said with one of the models, as a conversation that a dataset takes; images are files."""
        return self.session.conversation(model)

    def ask(self, text: str, *images: Attached) -> None:
        """Ask as if it were typed in, and wait for the answers. Raises `WorkbenchError` or `ImageError`."""
        for image in images:
            self.session.attach(image)
        self.session.ask(text)
        self._tell()
        self.session.wait()

    def save(self, dataset: str | Path | None = None, *, model: int = 0, end: int | None = None) -> Conversation:
        """Put the chat, up to and with exchange `end`, into a dataset folder; one that is not there is made.

        Raises `DataError` where no folder is named, `ConversationError` where there is no answer yet.
        """
        where = str(dataset or self.dataset).strip()
        if not where:
            raise DataError("save", found="no dataset", expected="a folder", fix="name one beside the button")
        kept = adopt(where, self.session.conversation(model, end), open_file)
        self.dataset, self.saved = where, f"kept in {where} as {kept.id}"
        return kept

    def html(self) -> str:
        return page("chat", names=self.names, exchanges=self.exchanges)

    # --- what the browser asks for --------------------------------------------------------------------------------

    def act(self, action: str, given: dict[str, Any]) -> None:
        session, number = self.session, int(given.get("number") or 0)
        if action != "upload":
            self.saved = ""
        try:
            match action:
                case "ask":
                    session.ask(str(given.get("text", "")))
                case "edit":
                    session.edit(number, str(given.get("text", "")))
                case "clear" | "restore":
                    session.clear() if action == "clear" else session.restore(number)
                    self.exchanges = [self._shown(exchange) for exchange in session.exchanges]
                case "attach":
                    session.attach(str(given.get("path", "")))
                case "detach":
                    del session.waiting[number : number + 1]
                case "set":
                    session.set(str(given.get("key")), given.get("value"))
                case "save":
                    self.save(given.get("dataset"), model=int(given.get("model") or 0), end=number)
                case "regenerate" | "stop":
                    getattr(session, action)()
        finally:
            if action not in ("stop", "upload", "save"):
                self._tell()

    def _asked(self, widget: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("do") == "upload":
            try:
                self._upload(content, buffers)
            except WorkbenchError as error:
                self.problem = str(error)
            return
        super()._asked(widget, content, buffers)

    def _upload(self, given: dict[str, Any], buffers: Any) -> None:
        """A file comes in parts, in order: a notebook's connection takes only so much at once."""
        key, name = str(given.get("key")), Path(str(given.get("name") or "picture")).name
        held = self._uploads.setdefault(key, bytearray())
        for part in buffers or ():
            held += bytes(part)
        if len(held) > LIMITS.bytes:
            del self._uploads[key]
            raise DataError(name, found="too large a file", expected=f"at most {LIMITS.bytes >> 20} MiB")
        if not given.get("last"):
            return
        place = uploaded(bytes(self._uploads.pop(key)), name)
        self.problem = ""
        self.session.attach(place)
        self._tell()

    # --- what the browser is told ---------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Everything but the exchanges."""
        session = self.session
        self.waiting = self._pictures(session.waiting)
        self.options = {name: getattr(session.options, name) for name in SHOWN_OPTIONS}
        self.earlier = [chat[0].text for chat in session.earlier]

    def _heard(self, number: int, model: int | None, text: str | None) -> None:
        with self._telling:
            if model is None:
                put = self._shown(self.session.exchanges[number])
                self.exchanges[number:] = [put]
                return self.send({"put": put, "number": number})
            replies = self.exchanges[number]["replies"]
            if text is None:
                replies[model] = self.session.exchanges[number].replies[model].shown()
            else:
                replies[model] = {**replies[model], "text": replies[model]["text"] + text}
            self.send({"reply": replies[model] if text is None else text, "number": number, "model": model})

    def _shown(self, exchange: Exchange) -> dict[str, Any]:
        replies = [reply.shown() for reply in exchange.replies]
        return {"question": exchange.text, "pictures": self._pictures(exchange.images), "replies": replies}

    def _pictures(self, images: Sequence[Media]) -> list[dict[str, str]]:
        for image in images:
            if image not in self._small:
                self._small[image] = thumbnail_uri(still(open_file(image)), SIDE)
        return [{"name": Path(image.path).name, "picture": self._small[image]} for image in images]


def chat(
    model: str | Path | ChatModel,
    *,
    image: Attached | Sequence[Attached] | None = None,
    compare: str | Path | bool | ChatModel = False,
    dataset: str | Path | None = None,
    options: SamplingOptions | Mapping[str, Any] = terminal.LONG,
    load: str | None = None,
    device: str = "auto",
) -> ChatView | None:
    """Chat with a model: in a notebook a widget, which is returned; elsewhere on standard input and output.

    model: a model, or whatever `workbench.open_model` opens. image: shown with the first question; several, PDF files,
    videos and PIL images too. compare: another model that is asked the same and stands beside it, True for the base
    that a run trained on. dataset: the folder that "Save" of the widget puts good exchanges in. options:
    `SamplingOptions`, or a mapping of some. load, device: as in `workbench.load`. Raises `WorkbenchError` for an option
    that there is not, and what loading a model or the first images raises.
    """
    options = as_options(options)  # told before a model is loaded
    if not isinstance(model, (str, Path)):
        as_model(model)
    if not in_notebook():
        terminal.chat(model, image=image, compare=compare, options=options, load=load, device=device)
        return None
    opened = open_model(model, load=load, device=device)
    models = [opened]
    if compare is True or isinstance(compare, (str, Path)):
        models.append(open_beside(opened, None if compare is True else compare, load=load, device=device))
    elif compare is not False:
        models.append(as_model(compare))
    view = ChatView([as_letters(one) for one in models], options=options, dataset=dataset)
    for one in listed(image):
        view.session.attach(one)
    view._tell()
    return view
