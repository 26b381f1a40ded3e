"""Procedural scenes with exact annotations: the embedded dataset.

Knows: how to draw one to four coloured shapes on a varied background, and what is where in the picture.
Does not know: what can be said about a scene (`scene_text.py`), or files and folders (`scene_files.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

SIZE = 96
"""Width and height of a scene in pixels."""
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLORS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 224, 40),
    "green": (40, 160, 60),
    "blue": (36, 84, 214),
    "purple": (142, 52, 176),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SIZES = {"small": (17.0, 21.0), "large": (30.0, 36.0)}
"""Diameter in pixels, from and to."""
SIZE_NAMES = tuple(SIZES)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
NEVER_SEEN = frozenset(
    {
        ("star", "red"),
        ("circle", "yellow"),
        ("square", "purple"),
        ("triangle", "white"),
        ("cross", "blue"),
        ("ring", "green"),
        ("diamond", "orange"),
        ("heart", "black"),
    }
)
"""Pairs of shape and color, an eighth of all, that the tiny starting parts never met, in pictures or in text."""

Box = tuple[float, float, float, float]
MaskOf = Callable[[str, Box, float], np.ndarray]
_CELL = SIZE / 3
_MARGIN = 4.0  # a centre stays this far from the borders between places, so that no place is a matter of opinion
_SWAY = 3.0  # and this near to the middle of a 12-pixel step, so that a tower of 12-pixel patches need not split it


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene. `box` is x0, y0, x1, y1 in pixels; `place` one of `PLACES`."""

    shape: str
    color: str
    size: str
    place: str
    box: Box

    @property
    def row(self) -> str:
        return self.place.split()[0]

    @property
    def column(self) -> str:
        return self.place.split()[1]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """The exact annotation of one picture, objects in reading order (row by row, left to right)."""

    objects: tuple[SceneObject, ...]

    def to_json(self) -> str:
        return json.dumps([asdict(thing) | {"label": f"{thing.color} {thing.shape}"} for thing in self.objects])

    @staticmethod
    def from_json(text: str) -> Scene:
        made = [
            SceneObject(item["shape"], item["color"], item["size"], item["place"], tuple(item["box"]))
            for item in json.loads(text)
        ]
        return Scene(tuple(made))


def sample_scene(
    rng: np.random.Generator, *, avoid: frozenset[tuple[str, str]] = frozenset(), shapes: Sequence[str] = SHAPES
) -> Scene:
    """A random scene of one to four objects that do not touch; pairs in `avoid` do not occur."""
    # Sizes are drawn once and places until they fit, or large things, which fit less often, would be the rarer ones.
    sizes = [SIZE_NAMES[int(index)] for index in rng.integers(len(SIZE_NAMES), size=int(rng.integers(1, 5)))]
    while True:
        things = _place_objects(rng, sizes, avoid, shapes)
        if things is not None:
            order = sorted(things, key=lambda thing: PLACES.index(thing.place))
            return Scene(tuple(order))


def _place_objects(
    rng: np.random.Generator, sizes: Sequence[str], avoid: frozenset[tuple[str, str]], shapes: Sequence[str]
) -> list[SceneObject] | None:
    """One object of each size in different places, or None where the draw does not fit."""
    things: list[SceneObject] = []
    circles: list[tuple[float, float, float]] = []
    for size, cell in zip(sizes, rng.permutation(9), strict=False):
        radius = float(rng.uniform(*SIZES[size])) / 2
        row, column = divmod(int(cell), 3)
        x, y = (_centre(rng, index, radius) for index in (column, row))
        if any(math.hypot(x - a, y - b) < radius + r + 1 for a, b, r in circles):
            return None
        pair = _pair(rng, avoid, shapes)
        circles.append((x, y, radius))
        box = tuple(round(value, 2) for value in (x - radius, y - radius, x + radius, y + radius))
        things.append(SceneObject(*pair, size, PLACES[int(cell)], box))  # type: ignore[arg-type]
    if len({(thing.shape, thing.color) for thing in things}) < len(things):
        return None  # "the red star" must name one thing
    return things


def _centre(rng: np.random.Generator, index: int, radius: float) -> float:
    """A coordinate in the third `index` of the picture, near the middle of one of the 12-pixel steps there."""
    low = max(index * _CELL + _MARGIN, radius + 1)
    high = min((index + 1) * _CELL - _MARGIN, SIZE - radius - 1)
    near = [(max(low, step - _SWAY), min(high, step + _SWAY)) for step in range(6, SIZE, 12)]
    spans = [(start, end) for start, end in near if end - start > 1]
    return float(rng.uniform(*spans[int(rng.integers(len(spans)))]))


def _pair(rng: np.random.Generator, avoid: frozenset[tuple[str, str]], shapes: Sequence[str]) -> tuple[str, str]:
    colors = list(COLORS)
    while True:
        pair = shapes[int(rng.integers(len(shapes)))], colors[int(rng.integers(len(colors)))]
        if pair not in avoid:
            return pair


# --- drawing --------------------------------------------------------------------------------------------------

_OVER = 4  # shapes are drawn this many times larger and averaged down, for smooth edges


def draw_scene(scene: Scene, rng: np.random.Generator, mask_of: MaskOf | None = None) -> PILImage.Image:
    """The picture of a scene, 96 x 96 RGB, with a random background, light and noise.

    `mask_of(shape, box, angle)` draws other things than `SHAPES`: (H, W, 1) coverage from 0 to 1.
    """
    canvas = _background(rng)
    for thing in scene.objects:
        mask = (mask_of or shape_mask)(thing.shape, thing.box, float(rng.uniform(-12, 12)))
        color = np.asarray(COLORS[thing.color], np.float32) + rng.normal(0, 7, 3).astype(np.float32)
        canvas = canvas * (1 - mask) + color * mask
    light = rng.uniform(0.86, 1.1) + _gradient(rng) * rng.uniform(0, 0.1)
    noise = rng.normal(0, rng.uniform(0, 6), canvas.shape)
    return PILImage.fromarray(np.clip(canvas * light + noise, 0, 255).astype(np.uint8))


def _gradient(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 1) values from -1 to 1 along a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    plane = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    return (plane / 1.42)[..., None]


def _background(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32: a tinted mid tone with a gradient and, half the time, stripes or speckles."""
    tone = rng.uniform(95, 165) + rng.normal(0, 12, 3)
    plane = tone.astype(np.float32) + _gradient(rng) * np.float32(rng.uniform(0, 25))
    texture = rng.random()
    if texture < 0.25:
        wave = np.sin(_gradient(rng) * rng.uniform(8, 30)).astype(np.float32)
        plane = plane + wave * np.float32(rng.uniform(3, 10))
    elif texture < 0.5:
        coarse = rng.normal(0, rng.uniform(3, 9), (12, 12)).astype(np.float32)
        plane = plane + np.kron(coarse, np.ones((8, 8), np.float32))[..., None]
    return plane


def shape_mask(shape: str, box: Box, angle: float) -> np.ndarray:
    """(H, W, 1) coverage from 0 to 1."""
    side = SIZE * _OVER
    mask = PILImage.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    x0, y0, x1, y1 = (value * _OVER for value in box)
    if shape in ("circle", "ring"):
        pen.ellipse((x0, y0, x1, y1), fill=255)
        if shape == "ring":
            inset = (x1 - x0) * 0.26
            pen.ellipse((x0 + inset, y0 + inset, x1 - inset, y1 - inset), fill=0)
    else:
        centre, radius = ((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0) / 2
        pen.polygon(_outline(shape, centre, radius, math.radians(angle)), fill=255)
    small = mask.reduce(_OVER)
    return np.asarray(small, np.float32)[..., None] / 255


def _outline(shape: str, centre: tuple[float, float], radius: float, angle: float) -> list[tuple[float, float]]:
    """The polygon of a shape in a circle of `radius` pixels, turned by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (centre[0] + radius * (x * cos - y * sin), centre[1] + radius * (x * sin + y * cos))
        for x, y in _unit_outline(shape)
    ]


def _unit_outline(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "cross":
        arm = 0.32
        quarter = [(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1)]
        return quarter + [(-x, -y) for x, y in quarter]
    if shape == "star":
        turns = [(-math.pi / 2 + index * math.pi / 5, 1.0 if index % 2 == 0 else 0.42) for index in range(10)]
        return [(r * math.cos(turn), r * math.sin(turn)) for turn, r in turns]
    curve = np.linspace(0, 2 * math.pi, 40)  # heart: x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
    xs = 16 * np.sin(curve) ** 3
    ys = -(13 * np.cos(curve) - 5 * np.cos(2 * curve) - 2 * np.cos(3 * curve) - np.cos(4 * curve))
    return [(float(x) / 17, float(y + 2) / 17) for x, y in zip(xs, ys, strict=True)]
