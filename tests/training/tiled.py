"""What training of every LLaVA that sees tiles has to hold: exact packs, foreseen memory, a killed run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional

from tests.training.test_memory import Real, outlined
from tests.training.test_resume import assert_same, wait_for
from tests.training.test_sharing import assert_close, gradients
from workbench.data.dataset import Dataset
from workbench.model.stages import prepare
from workbench.training.examples import Examples
from workbench.training.features import open_store
from workbench.training.feed import Feed
from workbench.training.forward import token_losses
from workbench.training.lengths import measure
from workbench.training.memory import Foresight, at_most
from workbench.training.packing import Plan, group, packs, trees
from workbench.training.sizes import find_sizes
from workbench.training.source import find_images, read_source
from workbench.training.trainer import train

Made = Callable[..., Any]
SIZES = [(30, 24), (24, 60), (100, 100), (71, 9), (5, 5)]
"""Of pictures, where tiles are 24 pixels wide; the third has more tokens than two tiles: OneVision scales it down."""
EXACT = pytest.mark.parametrize(
    "overrides",
    [("train.language=lora",), ("train.language=frozen", "train.stage=align"), ("train.vision=full",)],
    ids=["lora", "align", "lora and tower"],
)
"""The stages whose packs have to give transformers' loss and gradients."""
FORESEEN = pytest.mark.parametrize(
    "way",
    [
        ("train.stage=align", "train.language=frozen"),
        ("train.language=lora",),
        ("train.language=full", "train.vision=full"),
    ],
)
"""The stages whose memory has to be foreseen."""


def draw(dataset: Dataset) -> None:
    """Noise of these sizes in place of the dataset's pictures."""
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(dataset.path / "images" / f"{number}.png")


def prepared(recipe: Any, llava: Any, off_zero: Made, most: int) -> Any:
    """(examples, lengths, feed of packs of `most` tokens, source, files) of a model that begins this stage."""
    prepare(llava, recipe.train, say=lambda text: None)
    off_zero(llava)
    source = read_source(recipe.data, seed=0)
    files = find_images(source)
    sizes = find_sizes(source, files, llava.tiling)
    examples = Examples(source.train, llava, sizes)
    lengths = measure(examples, name=str(recipe.data.dataset))
    store = open_store(llava, files, recipe.train, sizes=sizes, say=print)
    feed = Feed(Plan.of(lengths.entries(), recipe.train), examples, store, llava, pack_tokens=most)
    return examples, lengths, feed, source, files


def vanilla(
    llava: Any,
    examples: Any,
    images_of: Callable[[Sequence[str]], dict[str, torch.Tensor]],
    mark_of: Callable[[str], int] | None = None,
) -> torch.Tensor:
    """transformers' own forward, one conversation at a time, given what `images_of` its images' keys; mean of all.

    mark_of: the token of an image's places, by its key; `<image>` for all without.
    """
    total, count = torch.zeros(()), 0
    for example in examples:
        whole, places = example.expand()
        marks = [mark_of(key) if mark_of else llava.image_token_id for key in example.images]
        whole[whole == -200] = np.repeat(marks, example.counts)
        ids = torch.from_numpy(whole)[None].long()
        images = images_of(example.images) if example.images else {}
        scores = llava.model(input_ids=ids, **images).logits[0]
        places = torch.from_numpy(places)
        total = total + functional.cross_entropy(scores[places - 1], ids[0, places], reduction="sum")
        count += len(places)
    return total / count


def assert_exact(llava: Any, lengths: Any, feed: Any, expected: torch.Tensor, most: int, *, share: bool) -> None:
    """Packs of `most` tokens give this loss and its gradients, the newline's among them."""
    wanted = gradients(llava, expected)
    assert "model.image_newline" in wanted
    cut = trees(group(lengths.entries(), share=share), max_share=3, max_tokens=most)
    total = sum(tree.supervised for tree in cut)
    with feed.store:
        pieces = [feed.piece(held) for held in packs(cut, most)]
        found = torch.stack([token_losses(llava, one.batch, one.images).sum() / total for one in pieces]).sum()
    assert len(pieces) > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert_close(gradients(llava, found), wanted)


def worst_pack(lengths: Any, most: int) -> Any:
    return packs([*trees(group(lengths.entries()), max_share=3, max_tokens=most)], most)[0]


def assert_foreseen(recipe: Any, worst: Any, make_llava: Made) -> None:
    """Shapes alone take the memory that the real step takes."""
    foreseen = Foresight(outlined(recipe), recipe.train).peak(worst)
    real = Foresight(Real(make_llava(recipe)), recipe.train).peak(worst)  # type: ignore[arg-type]
    # of models this small a copy of the tower's rows that is foreseen and not made is seen: 1,024 bytes a tile
    assert foreseen.items == pytest.approx(real.items, rel=0.002, abs=16384)
    assert (foreseen.phase, foreseen.flops) == (real.phase, real.flops)
    llava = make_llava(recipe)
    prepare(llava, recipe.train, say=lambda text: None)
    assert foreseen.peak < at_most(llava, sum(tree.tokens for tree in worst))


def assert_goes_on(tmp_path: Path, recipe: Any, start: Made) -> tuple[Path, Path]:
    """A run that is killed and resumed equals one that was not, to the bit; (the whole one, the broken one)."""
    whole, broken = train(recipe, out=tmp_path / "whole", progress=False).path, tmp_path / "broken"
    process = start(train, recipe, out=broken, progress=False)
    wait_for(broken, 3, process)
    process.kill()
    process.join()
    train(recipe, out=broken, resume=True, progress=False)
    assert_same(broken, whole)
    return whole, broken


def assert_kept_or_not(tmp_path: Path, recipe_of: Made) -> None:
    """Features from the disk, from memory and computed anew train to the same bits."""
    runs = []
    for name, kept in (("first", "on"), ("again", "on"), ("off", "off")):
        runs.append(train(recipe_of(f"train.feature_cache={kept}"), out=tmp_path / name, progress=False).path)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
