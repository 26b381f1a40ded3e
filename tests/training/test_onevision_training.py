"""LLaVA-OneVision trains: a picture alone is tiles, one of several a square; runs resume to the bit, plans hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
)

from tests.training.test_memory import Real, outlined
from tests.training.test_resume import assert_same, wait_for
from tests.training.test_sharing import assert_close, gradients
from workbench.conversation import Conversation, Image, Message
from workbench.data.dataset import Dataset
from workbench.data.images import load_image
from workbench.model.export import export_hf, processor
from workbench.model.llava import build, load
from workbench.model.proof import probe
from workbench.model.stages import prepare
from workbench.model.tiling import PADDED
from workbench.training.examples import Examples
from workbench.training.features import open_store
from workbench.training.feed import Feed
from workbench.training.forward import token_losses
from workbench.training.lengths import measure
from workbench.training.memory import Foresight, at_most
from workbench.training.packing import Plan, group, packs, trees
from workbench.training.plan import plan
from workbench.training.sizes import file_key, find_sizes, shown_keys
from workbench.training.source import find_images, read_source
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
SIZES = [(30, 24), (24, 60), (100, 100), (71, 9), (5, 5)]
"""Of tiles 24 pixels wide; the third has more tokens than two of them and is scaled down."""
USUAL = ("image_mode=anyres_max_2", "template=qwen", "train.max_tokens=600", "train.pack_tokens=600")


@pytest.fixture
def recipe_of(make_recipe: Made, onevision_parts: tuple[str, str]) -> Made:
    """`recipe_of(dataset, "train.language=full", ...)`"""

    def made(dataset: Any, *overrides: str) -> Any:
        return make_recipe(dataset, *onevision_parts, *USUAL, *overrides)

    return made


@pytest.fixture
def pictures(make_dataset: Made) -> Dataset:
    """The dataset of all training tests, its pictures of several sizes; three conversations are about two of them."""
    dataset = make_dataset(images=len(SIZES))
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(dataset.path / "images" / f"{number}.png")
    two = (Image("0.png"), "and", Image("2.png"))
    asked = {n: (Message("user", (*two, "?" * n)), Message("assistant", ("Two." * n,))) for n in (1, 2)}
    both = [Conversation(f"both{n}", messages) for n, messages in asked.items()]
    first = Message("user", (Image("0.png"), "Which colour?")), Message("assistant", ("red",))
    joined = (*first, Message("user", (Image("4.png"), "And this?")), Message("assistant", ("None.",)))
    dataset.add_conversations([*both, Conversation("joined", joined)])
    return dataset


@pytest.fixture
def ready(pictures: Dataset, recipe_of: Made, make_llava: Made, off_zero: Made) -> Made:
    """`ready("train.language=lora", ...)`: (llava prepared, examples, lengths, feed of them, files)."""

    def made(*overrides: str) -> Any:
        recipe = recipe_of(pictures, "data.val_fraction=0", *overrides)
        llava = make_llava(recipe)
        prepare(llava, recipe.train, say=lambda text: None)
        off_zero(llava)
        source = read_source(recipe.data, seed=0)
        files = find_images(source)
        sizes = find_sizes(source, files, llava.tiling)
        examples = Examples(source.train, llava, sizes)
        lengths = measure(examples, name=str(pictures.path))
        store = open_store(llava, files, recipe.train, sizes=sizes, say=print)
        feed = Feed(Plan.of(lengths.entries(), recipe.train), examples, store, llava, pack_tokens=600)
        return llava, examples, lengths, feed, (source, files)

    return made


def vanilla(llava: Any, examples: Any, files: dict[str, Path]) -> torch.Tensor:
    """transformers' own forward, one conversation at a time, told how many pictures it has; mean over all tokens."""
    total, count = torch.zeros(()), 0
    for example in examples:
        whole, places = example.expand()
        ids = torch.from_numpy(np.where(whole == -200, llava.image_token_id, whole))[None].long()
        images = {}
        if example.images:
            opened = [load_image(files[file_key(key)]) for key in example.images]
            images = processor(llava).image_processor([opened], return_tensors="pt")
        scores = llava.model(input_ids=ids, **images).logits[0]
        places = torch.from_numpy(places)
        total = total + functional.cross_entropy(scores[places - 1], ids[0, places], reduction="sum")
        count += len(places)
    return total / count


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize(
    "overrides",
    [("train.language=lora",), ("train.language=frozen", "train.stage=align"), ("train.vision=full",)],
    ids=["lora", "align", "lora and tower"],
)
def test_packs_of_pictures_alone_and_beside_others_give_transformers_loss_and_gradients(
    ready: Made, overrides: tuple[str, ...], share: bool
) -> None:
    llava, examples, lengths, feed, (_, files) = ready(*overrides)
    expected = vanilla(llava, examples, files)
    wanted = gradients(llava, expected)
    assert "model.image_newline" in wanted
    cut = trees(group(lengths.entries(), share=share), max_share=3, max_tokens=600)
    total = sum(tree.supervised for tree in cut)
    with feed.store:
        pieces = [feed.piece(held) for held in packs(cut, 600)]
        found = torch.stack([token_losses(llava, one.batch, one.images).sum() / total for one in pieces]).sum()
    assert len(pieces) > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert_close(gradients(llava, found), wanted)


def test_a_picture_counts_by_the_way_it_is_shown_and_never_shares_across_two_ways(
    ready: Made, pictures: Dataset
) -> None:
    llava, examples, lengths, feed, (source, files) = ready()
    feed.store.close()
    tiling, entries = llava.tiling, dict(zip([one.id for one in examples], lengths.entries(), strict=True))
    own = {f"images/{n}.png": size for n, size in enumerate(SIZES)}
    for example in examples:
        alone = len(example.images) == 1
        sizes = [own[file_key(key)] if alone else PADDED for key in example.images]
        entry = entries[example.id]
        assert example.sizes == tuple(sizes) and entry.tiles == sum(map(tiling.tiles, sizes))
        assert entry.image_tokens == sum(map(tiling.tokens, sizes)) and entry.tokens == len(example.expand()[0])
    assert entries["both1"].image_tokens == 2 * (9 + 1) and entries["both1"].tiles == 2
    assert entries["both1"].key == entries["both2"].key
    assert len({entries[id].key for id in ("both1", "joined", "c0.0")}) == 3
    asked = sorted(map(file_key, shown_keys(source, files, tiling)))
    assert asked == sorted([*files, "images/0.png", "images/2.png", "images/4.png"])


@pytest.mark.parametrize("language", ["full", "lora"])
def test_two_stages_resume_merge_and_vanilla_transformers(
    tmp_path: Path, pictures: Dataset, recipe_of: Made, start: Made, language: str
) -> None:
    """The whole way: align, fine-tune from it (QLoRA, or all), killed and resumed; export; transformers agrees."""
    align = recipe_of(pictures, "train.stage=align", "train.language=frozen", "train.lr=5e-3")
    first = train(align, out=tmp_path / "align", progress=False)
    fresh = build(align.model, template="qwen", image_mode="anyres_max_2", seed=align.train.seed).newline
    assert not torch.equal(load(first.path, device="cpu").newline, fresh), "the newline trains with the projector"
    form = "model.load=4bit" if language == "lora" else "model.load=fp32"
    more = (f"model.projector_from={first.path}", form, "train.max_steps=6", "train.save_every=2", "train.eval_every=3")
    recipe = recipe_of(pictures, f"train.language={language}", *more)
    whole, broken = train(recipe, out=tmp_path / "whole", progress=False), tmp_path / "broken"
    process = start(train, recipe, out=broken, progress=False)
    wait_for(broken, 3, process)
    process.kill()
    process.join()
    train(recipe, out=broken, resume=True, progress=False)
    assert_same(broken, whole.path)
    folder = export_hf(whole.path, tmp_path / "out", device="cpu")
    llava, merged = load(whole.path, device="cpu"), load(folder, device="cpu")
    torch.testing.assert_close(probe(merged)[1], probe(llava)[1], rtol=1e-3, atol=1e-3)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    opened = [load_image(pictures.path / "images" / f"{n}.png") for n in (1, 2)]
    for images in (opened[:1], opened[1:], opened):
        inputs = processor(merged)(text="<image>hi" * len(images), images=[images], return_tensors="pt")
        with torch.no_grad():
            features = merged.image_inputs(merged.look([merged.show(one, len(images)) for one in images]))
            ours = merged.model(input_ids=inputs["input_ids"], mm_encoder_outputs=features).logits
            torch.testing.assert_close(model(**inputs).logits, ours, rtol=1e-4, atol=1e-4)


def test_features_kept_on_the_disk_and_in_memory_train_to_the_same_bits(
    tmp_path: Path, pictures: Dataset, recipe_of: Made
) -> None:
    runs = []
    for name, kept in (("first", "auto"), ("again", "auto"), ("off", "off")):
        runs.append(train(recipe_of(pictures, f"train.feature_cache={kept}"), out=tmp_path / name, progress=False).path)
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_a_plan_says_what_training_then_does(tmp_path: Path, pictures: Dataset, recipe_of: Made) -> None:
    recipe = recipe_of(pictures, "train.max_steps=null", "data.val_fraction=0")
    forecast = plan(recipe)
    rows = [row for row in train(recipe, out=tmp_path / "run", progress=False).metrics() if "loss" in row]
    assert forecast.counts.tokens == sum(row["tokens"] for row in rows)
    assert 0 < forecast.counts.image_tokens < forecast.counts.tokens and forecast.fits
    saved = f"model.checkpoint={tmp_path / 'run' / 'checkpoints' / 'last'}"
    again = plan(recipe.with_overrides(saved, "model.vision=null", "model.language=null"))
    assert again.counts.tokens == forecast.counts.tokens


@pytest.mark.parametrize(
    "way",
    [
        ("train.stage=align", "train.language=frozen"),
        ("train.language=lora",),
        ("train.language=full", "train.vision=full"),
    ],
)
def test_memory_is_foreseen_as_the_step_takes_it(
    ready: Made, recipe_of: Made, make_llava: Made, way: tuple[str, ...]
) -> None:
    _, _, lengths, feed, _ = ready()
    feed.store.close()
    worst = packs([*trees(group(lengths.entries()), max_share=3, max_tokens=600)], 600)[0]
    recipe = recipe_of("unused", *way)
    foreseen = Foresight(outlined(recipe), recipe.train).peak(worst)
    real = Foresight(Real(make_llava(recipe)), recipe.train).peak(worst)  # type: ignore[arg-type]
    assert foreseen.items == pytest.approx(real.items, rel=0.002, abs=8192)
    assert (foreseen.phase, foreseen.flops) == (real.phase, real.flops)
    llava = make_llava(recipe)
    prepare(llava, recipe.train, say=lambda text: None)
    assert foreseen.peak < at_most(llava, sum(tree.tokens for tree in worst))
