"""Where in the image a model looked for each token of its answer, drawn over the image.

Knows: colours, how a map of patches becomes a picture, and that a map is made when somebody asks for it.
Does not know: how maps come about (`inference/relevance.py`), how it looks (`heatmap.js`, `heatmap.css`).
"""

from __future__ import annotations

import base64
import io
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from workbench.chat_model import Answer, ChatModel, SamplingOptions
from workbench.conversation import Conversation, as_conversation
from workbench.data.dataset import Dataset
from workbench.data.images import thumbnail_uri
from workbench.errors import DataError, ModelError, WorkbenchError
from workbench.inference.engine import Engine
from workbench.inference.opening import open_model
from workbench.inference.relevance import METHODS, Relevance
from workbench.model.llava import Llava
from workbench.model.pieces import pieces
from workbench.resources import expanded, write_atomic
from workbench.widgets.base import View, front
from workbench.widgets.pictures import opener
from workbench.widgets.static import page

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

MARK = "workbench heat map"
"""What a written one says of itself; another picture is not written over."""
SIDE = 384
"""Pixels of the pictures that are shown."""
STRENGTH = 0.75
"""How opaque the strongest patch is in what `save` writes."""


class HeatmapView(View):
    """The widget. `shown`: {token, method, relative, overlays: a data URI per image, peak: strongest patch, 0 to 1}."""

    _esm, _css = front("heatmap")
    ACTIONS = ("look",)
    tokens: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """The texts of the answer's tokens, without the one that ends it."""
    pictures: traitlets.List[Any] = traitlets.List().tag(sync=True)
    """What the tower sees of each image."""
    methods: traitlets.List[Any] = traitlets.List(list(METHODS)).tag(sync=True)
    question = traitlets.Unicode().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    busy = traitlets.Bool().tag(sync=True)

    def __init__(self, engine: Engine | Llava, conversation: Conversation, open_image: Any) -> None:
        self._engine, self._lock, self._turn = engine, threading.Lock(), threading.Lock()
        self._wanted: tuple[int, str, bool] | None = None
        with self._model() as llava:
            self.relevance = Relevance(llava, conversation, open_image)
            said = pieces(llava.renderer, self.relevance.rendered)
            images = self.relevance.rendered.images
            self._squares = [llava.mode_among(len(images)).square(open_image(image)) for image in images]
        *rest, last = self.relevance.tokens
        seen = rest if rest and said[last].id in llava.renderer.end_ids else [*rest, last]  # nobody sees an end
        texts = [said[number].text for number in seen]
        question = conversation.prompt.messages[-1].text
        big = [square.resize((SIDE, SIDE)) for square in self._squares]
        super().__init__(tokens=texts, pictures=[thumbnail_uri(one, SIDE) for one in big], question=question)
        self.look(next((number for number, text in enumerate(texts) if text.strip()), 0))

    def __repr__(self) -> str:
        return f"heatmap of {''.join(self.tokens)!r}, shown for {self.tokens[self.shown['token']]!r}"

    def look(self, token: int, method: str = "relevance", *, relative: bool = True) -> HeatmapView:
        """Show what token `token` of the answer drew on. Raises `ModelError` for one that is not there."""
        with self._lock, self._model():
            found = self.relevance.map(token, method, relative=relative).numpy()
        self._map = found
        told = {"token": token, "method": method, "relative": relative and method != "occlusion"}
        self.shown = {**told, "overlays": [_uri(overlay(one)) for one in found], "peak": float(found.max())}
        return self

    @property
    def map(self) -> np.ndarray:
        """The map that is shown: (images, rows, columns) over the patches of the square, its sum 1."""
        return self._map

    def picture(self, image: int = 0) -> Picture:
        """An image with the map over it."""
        return _over(self._squares[image], self._map[image])

    def save(self, path: str | Path) -> Path:
        """Write what is shown as a PNG, several images beside each other, over nothing but an earlier heat map.

        Raises `DataError` for another file that is there or another ending than `.png`, and `DiskError`.
        """
        from PIL import Image as PILImage
        from PIL.PngImagePlugin import PngInfo

        file = expanded(path)
        if file.suffix.lower() != ".png":
            raise DataError(str(path), found=f"the ending {file.suffix!r}", expected=".png, which is what is written")
        if file.exists() and not _is_map(file):
            raise DataError(
                str(path), found="a file that is no heat map", fix="choose another name, or remove it first"
            )
        mark = PngInfo()
        mark.add_text("Software", MARK)
        parts = [self.picture(number) for number in range(len(self._squares))]
        whole = PILImage.new("RGB", (SIDE * len(parts), SIDE))
        for number, part in enumerate(parts):
            whole.paste(part, (number * SIDE, 0))
        written = io.BytesIO()
        whole.save(written, "PNG", pnginfo=mark)
        write_atomic(file, written.getvalue())
        return Path(path)

    def html(self) -> str:
        pictures = [thumbnail_uri(self.picture(number), SIDE) for number in range(len(self._squares))]
        return page("heatmap", tokens=self.tokens, shown=self.shown, question=self.question, pictures=pictures)

    def act(self, action: str, given: dict[str, Any]) -> None:
        asked = int(given.get("token", 0)), str(given.get("method", "relevance"))
        self._wanted = (*asked, bool(given.get("relative", True)))
        threading.Thread(target=self._look, name="heatmap", daemon=True).start()

    def _look(self) -> None:
        """Show what was asked for last; what was asked before it and has not begun is left out."""
        with self._turn:
            wanted, self._wanted = self._wanted, None
            if wanted is None:
                return
            self.busy = True
            try:
                self.look(*wanted[:2], relative=wanted[2])
            except WorkbenchError as error:
                self.problem = str(error)
            finally:
                self.busy = False

    def _model(self) -> AbstractContextManager[Llava]:
        return self._engine.alone() if isinstance(self._engine, Engine) else nullcontext(self._engine)


def heatmap(
    model: ChatModel | Llava | str | Path,
    conversation: Conversation,
    answer: str | Answer | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
) -> HeatmapView:
    """Which patches of the images each token of an answer drew on, over the images.

    model: an `Engine`, `wb.load`, or a run folder. conversation: with its last answer, or, where a question is last,
    with `answer`, or what the model then answers. dataset: where its pictures lie; without one their paths are files.

    `.look(token, method, relative=)` shows another token, by relevance, attention or occlusion; `.map` are the numbers,
    `.save("a.png")` writes the picture. Raises `ModelError` for a model whose insides are not known here and for a
    conversation without an image.

    >>> asked = dataset.conversations("train", tasks=["caption"])[0]
    >>> wb.heatmap("runs/align", asked, dataset=dataset).map.shape
    (1, 8, 8)
    """
    as_conversation(conversation)
    if not isinstance(model, Llava):
        model = open_model(model)
    if not isinstance(model, (Engine, Llava)):
        name = getattr(model, "name", type(model).__name__)
        raise ModelError(name, found="a model that cannot be looked into", expected="a LLaVA of ours on this machine")
    open_image = model.open_image if isinstance(model, Engine) and dataset is None else opener(dataset)
    if conversation.messages and conversation.messages[-1].role == "user":
        if answer is None:
            llava = model.llava if isinstance(model, Engine) else model
            engine = model if isinstance(model, Engine) and dataset is None else Engine(llava, open_image=open_image)
            answer = engine.reply(conversation, SamplingOptions(max_tokens=64))
        said = answer if isinstance(answer, str) else answer.text
        conversation = conversation.add("assistant", said.strip())
    return HeatmapView(model, conversation, open_image)


def overlay(grid: np.ndarray) -> Picture:
    """(rows, columns), not negative, as a picture of `SIDE` pixels: colour by strength, weak patches transparent."""
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image as PILImage

    top = float(grid.max())
    small = PILImage.fromarray((grid / top if top > 0 else grid).astype(np.float32))
    smooth = np.asarray(small.resize((SIDE, SIDE), PILImage.Resampling.BILINEAR))
    colours = (colormaps["inferno"](0.25 + 0.7 * smooth) * 255).astype(np.uint8)
    colours[..., 3] = (255 * np.sqrt(smooth.clip(0, 1))).astype(np.uint8)
    return PILImage.fromarray(colours)


def _over(square: Picture, grid: np.ndarray) -> Picture:
    heat = overlay(grid)
    heat.putalpha(heat.getchannel("A").point(lambda value: int(value * STRENGTH)))
    whole = square.convert("RGBA").resize((SIDE, SIDE))
    whole.alpha_composite(heat)
    return whole.convert("RGB")


def _is_map(file: Path) -> bool:
    from PIL import Image as PILImage

    try:
        with PILImage.open(file) as held:
            return held.info.get("Software") == MARK
    except OSError:  # no picture at all, or a folder
        return False


def _uri(picture: Picture) -> str:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
