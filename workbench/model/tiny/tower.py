"""How the tiny CLIP-type tower and its small text head were made.

Knows: a CLIP of transformers trained on drawn scenes with two aims: each patch tells through a throwaway linear head
which thing has its centre there, and pictures match their captions (contrastive, the text head stays).
Does not know: the language model or a projector; it never met the pairs in `NEVER_SEEN`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter, ImageFont
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from workbench.data import scene_text
from workbench.data.scenes import (
    COLORS,
    COLUMNS,
    NEVER_SEEN,
    PLACES,
    ROWS,
    SHAPES,
    SIZE,
    SIZES,
    Box,
    Scene,
    SceneObject,
    draw_scene,
    sample_scene,
)
from workbench.model.tiny import fast
from workbench.model.tiny.corpus import GLYPHS
from workbench.progress import progress, track

PATCH = 12
GRID = SIZE // PATCH
KINDS = (*SHAPES, *GLYPHS)
NAMES = ("kind", "color", "size", "row", "column")
HEAD = [1 + len(KINDS), 1 + len(COLORS), 1 + len(SIZES), 1 + len(ROWS), 1 + len(COLUMNS)]
"""Logits of the throwaway head for `NAMES`, each with "no centre here" first."""


@dataclass
class Pictures:
    """`pixels` (N, 96, 96, 3) uint8; `targets` (N, 64, 5): `NAMES` per patch, 0 for no centre; captions."""

    pixels: np.ndarray
    targets: np.ndarray
    captions: list[str]


def draw_pictures(count: int, seed: int) -> Pictures:
    """Scenes of shapes (two thirds), scenes of letters and digits, and single large, coarse letters and digits."""
    rng = np.random.default_rng(seed)
    fonts = _fonts()
    pixels = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    targets = np.zeros((count, GRID * GRID, len(HEAD)), np.int64)
    captions = []
    for index in track(range(count), "pictures for the tower"):
        draw = rng.random()
        if draw < 0.66:
            scene = sample_scene(rng, avoid=NEVER_SEEN)
            picture = draw_scene(scene, rng)
        else:
            font = fonts[int(rng.integers(len(fonts)))]

            def mask(kind: str, box: Box, angle: float, font: str = font) -> np.ndarray:
                return _glyph_mask(kind, box, angle, font)

            scene = sample_scene(rng, shapes=GLYPHS) if draw < 0.8 else _single_glyph(rng)
            picture = draw_scene(scene, rng, mask)
            if draw >= 0.8:
                picture = _coarse(picture, rng)
        pixels[index] = np.asarray(picture)
        targets[index] = patch_targets(scene)
        captions.append(scene_text.caption(scene))
    return Pictures(pixels, targets, captions)


def patch_targets(scene: Scene) -> np.ndarray:
    """(64, 5) `NAMES`, counted from 1, at the patch that holds a thing's centre, else 0."""
    targets = np.zeros((GRID * GRID, len(HEAD)), np.int64)
    for thing in scene.objects:
        x, y = (min(int(value / PATCH), GRID - 1) for value in thing.centre)
        values = [KINDS.index(thing.shape), list(COLORS).index(thing.color), list(SIZES).index(thing.size)]
        values += [ROWS.index(thing.row), COLUMNS.index(thing.column)]
        targets[y * GRID + x] = np.asarray(values) + 1
    return targets


def _fonts() -> list[str]:
    """The fonts that matplotlib brings: the same letters in a dozen cuts."""
    from matplotlib import get_data_path

    names = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold", "Serif-Italic")
    return [str(Path(get_data_path(), "fonts", "ttf", f"DejaVu{name}.ttf")) for name in names]


def _glyph_mask(kind: str, box: Box, angle: float, font: str) -> np.ndarray:
    """(H, W, 1) coverage of a letter or digit that fills the box."""
    side = 4 * SIZE
    mask = PILImage.new("L", (side, side))
    height = (box[3] - box[1]) * 4
    centre = ((box[0] + box[2]) * 2, (box[1] + box[3]) * 2)
    pen = ImageDraw.Draw(mask)
    pen.text(centre, kind.split()[1], fill=255, font=ImageFont.truetype(font, int(height * 1.25)), anchor="mm")
    mask = mask.rotate(angle, center=centre)
    return np.asarray(mask.reduce(4), np.float32)[..., None] / 255


def _single_glyph(rng: np.random.Generator) -> Scene:
    radius, x, y = rng.uniform(26, 44), rng.uniform(44, 52), rng.uniform(44, 52)
    box = (x - radius, y - radius, x + radius, y + radius)
    color = str(rng.choice(list(COLORS)))
    return Scene((SceneObject(str(rng.choice(GLYPHS)), color, "large", PLACES[4], box),))


def _coarse(picture: PILImage.Image, rng: np.random.Generator) -> PILImage.Image:
    """As a small scan looks when it is enlarged."""
    side = int(rng.choice([8, 12, 16, 28, SIZE]))
    resample = PILImage.Resampling.BICUBIC if rng.random() < 0.7 else PILImage.Resampling.NEAREST
    small = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))).resize((side, side), PILImage.Resampling.BOX)
    return small.resize((SIZE, SIZE), resample)


def clip_config(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    width = settings["width"]
    common = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    common["attn_implementation"] = "eager"  # on a CPU its backward pass is faster than that of sdpa
    vision = common | {"num_hidden_layers": settings["layers"], "image_size": SIZE, "patch_size": PATCH}
    text = common | {
        "num_hidden_layers": settings["text_layers"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 96,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)


def build_tower(tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], out: Path, log: Path) -> CLIPModel:
    """Train tower and text head together; writes a CLIP folder (fp16) and a line of figures every 500 steps."""
    torch.manual_seed(settings["seed"])
    config, steps, size = clip_config(settings, tokenizer), settings["steps"], settings["batch"]
    trained = nn.ModuleDict({"clip": CLIPModel(config), "head": nn.Linear(settings["width"], sum(HEAD))})
    model, head = trained["clip"], trained["head"]
    body = fast.compiled(model.vision_model, settings)
    pictures = draw_pictures(settings["pictures"], settings["seed"])
    held_out = draw_pictures(min(512, settings["pictures"]), settings["seed"] + 1)
    texts = _encode(tokenizer, pictures.captions)
    # The last layer serves the contrastive head alone: LLaVA reads the one before.
    optimizers = fast.optimizers(trained, model.vision_model.encoder.layers[:-1], settings)
    rng = np.random.default_rng([settings["seed"], 5])
    order = _shuffled(len(pictures.captions), rng)
    with progress("tower", total=steps, unit="step") as bar:
        for step in range(steps):
            fast.set_rates(optimizers, fast.cosine(step, steps))
            pick = np.fromiter(order, np.int64, size)
            with fast.autocast(settings):
                pixels = normalise(_jitter(pictures.pixels[pick], rng))
                hidden, pooled = tower_states(model, pixels, body)
                logits, pull = head(hidden).float(), contrastive_loss(model, pooled, texts[pick])
            even = step >= steps * (1 - settings["even"])
            dense = patch_loss(logits, torch.from_numpy(pictures.targets[pick]), even=even)
            fast.update(trained.parameters(), optimizers, dense + settings["contrastive"] * pull)
            bar.advance(1, note=f"patch {dense.item():.3f}, contrastive {pull.item():.3f}")
            if (step + 1) % 500 == 0 or step + 1 == steps:
                line = {"step": step + 1} | tower_accuracy(model, head, held_out)
                with log.open("a") as handle:
                    handle.write(json.dumps(line) + "\n")
                save_tower(model, tokenizer, out)
    return model


def _shuffled(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Every index once in random order, then again in another, without end."""
    while True:
        yield from rng.permutation(count).tolist()


def tower_states(
    model: CLIPModel, pixels: torch.Tensor, body: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 64, D) patches before the last layer, as LLaVA takes them, and (B, P) the picture's embedding.

    `body` is the model's vision part, or the same compiled.
    """
    output = (body or model.vision_model)(pixel_values=pixels, output_hidden_states=True)
    return output.hidden_states[-2][:, 1:], model.visual_projection(output.pooler_output)


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 with CLIP's mean and deviation."""
    processor = CLIPImageProcessor()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another light for each picture, so that a picture drawn once serves many times."""
    gain = rng.uniform(0.9, 1.08, (len(pixels), 1, 1, 1))
    return np.clip(pixels * gain + rng.normal(0, 3, pixels.shape[:3] + (1,)), 0, 255).astype(np.uint8)


def patch_loss(logits: torch.Tensor, targets: torch.Tensor, *, even: bool) -> torch.Tensor:
    """Cross-entropy of everything in `NAMES` per patch.

    At first the few centres weigh as much as the many other patches, or nothing is learned; with `even` every patch
    weighs the same (the sum is divided by the number of centres), which makes the borders between patches exact.
    """
    centre = targets[..., 0] > 0
    balanced = torch.where(centre, 0.5 / centre.sum(), 0.5 / (~centre).sum())
    weight = torch.ones_like(balanced) / centre.sum() if even else balanced
    total = logits.new_zeros(())
    for index, part in enumerate(logits.split(HEAD, dim=-1)):
        losses = functional.cross_entropy(part.flatten(0, 1), targets[..., index].flatten(), reduction="none")
        total = total + (losses * weight.flatten()).sum()
    return total


def contrastive_loss(model: CLIPModel, pooled: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy over the batch (Radford et al., 2021)."""
    mask = torch.cat([torch.ones_like(text[:, :1]), (text[:, 1:] != model.config.text_config.pad_token_id).long()], 1)
    told = model.text_projection(model.text_model(input_ids=text, attention_mask=mask).pooler_output)
    scores = functional.normalize(pooled, dim=-1) @ functional.normalize(told, dim=-1).T * model.logit_scale.exp()
    truth = torch.arange(len(scores))
    return (functional.cross_entropy(scores, truth) + functional.cross_entropy(scores.T, truth)) / 2


def _encode(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    lines = [[bos, *ids[:94], eos] for ids in tokenizer(captions, add_special_tokens=False)["input_ids"]]
    width = max(map(len, lines))
    return torch.tensor([line + [tokenizer.pad_token_id] * (width - len(line)) for line in lines])


@torch.no_grad()
def tower_accuracy(model: CLIPModel, head: nn.Linear, held_out: Pictures) -> dict[str, float]:
    """Share of patches with a centre that are right in each of `NAMES`, and of pictures with every centre found."""
    hidden, _ = tower_states(model, normalise(held_out.pixels))
    parts = head(hidden).split(HEAD, dim=-1)
    targets = torch.from_numpy(held_out.targets)
    centre = targets[..., 0] > 0
    found = {
        name: round((part.argmax(-1)[centre] == targets[..., index][centre]).float().mean().item(), 4)
        for index, (name, part) in enumerate(zip(NAMES, parts, strict=True))
    }
    exact = ((parts[0].argmax(-1) > 0) == centre).all(1).float().mean().item()
    return found | {"pictures with every centre right": round(exact, 4)}


def save_tower(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A CLIP folder as transformers keeps it, in fp16, with image processor and a tokenizer that adds BOS and EOS.

    CLIP reads a text where its EOS stands, so a plain `CLIPProcessor` has to add it. The language model's tokenizer,
    which adds nothing, stays as it is.
    """
    import copy

    from tokenizers.processors import TemplateProcessing

    copy.deepcopy(model).half().save_pretrained(out)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(out)
    telling, bos, eos = copy.deepcopy(tokenizer), tokenizer.bos_token, tokenizer.eos_token
    ends = [(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    telling.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ends)
    telling.save_pretrained(out)
