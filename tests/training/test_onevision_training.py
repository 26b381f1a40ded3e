"""LLaVA-OneVision trains: a picture alone is tiles, one of several a square; runs resume to the bit, plans hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
)

from tests.training.tiled import (
    EXACT,
    FORESEEN,
    SIZES,
    assert_exact,
    assert_foreseen,
    assert_goes_on,
    assert_kept_or_not,
    draw,
    prepared,
    vanilla,
    worst_pack,
)  # fmt: skip
from workbench.conversation import Conversation, Image, Message
from workbench.data.dataset import Dataset
from workbench.data.images import load_image
from workbench.model.export import export_hf, processor
from workbench.model.llava import build, load
from workbench.model.proof import probe
from workbench.model.tiling import PADDED
from workbench.training.plan import plan
from workbench.training.sizes import file_key, shown_keys
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
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
    draw(dataset)
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
        examples, lengths, feed, source, files = prepared(recipe, llava, off_zero, 600)
        return llava, examples, lengths, feed, (source, files)

    return made


def images_of(llava: Any, files: dict[str, Path]) -> Callable[[Sequence[str]], Any]:
    """Key of images -> what transformers' own processor makes of them, told how many they are."""
    return lambda keys: processor(llava).image_processor(
        [[load_image(files[file_key(key)]) for key in keys]], return_tensors="pt"
    )


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@EXACT
def test_packs_of_pictures_alone_and_beside_others_give_transformers_loss_and_gradients(
    ready: Made, overrides: tuple[str, ...], share: bool
) -> None:
    llava, examples, lengths, feed, (_, files) = ready(*overrides)
    expected = vanilla(llava, examples, images_of(llava, files))
    assert_exact(llava, lengths, feed, expected, 600, share=share)


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
    shown = {key for rows in (source.train, source.val) for keys in shown_keys(rows, tiling) for key in keys}
    asked = sorted(map(file_key, shown))
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
    whole, _ = assert_goes_on(tmp_path, recipe, start)
    folder = export_hf(whole, tmp_path / "out", device="cpu")
    llava, merged = load(whole, device="cpu"), load(folder, device="cpu")
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
    assert_kept_or_not(tmp_path, lambda kept: recipe_of(pictures, kept))


def test_a_plan_says_what_training_then_does(tmp_path: Path, pictures: Dataset, recipe_of: Made) -> None:
    recipe = recipe_of(pictures, "train.max_steps=null", "data.val_fraction=0")
    forecast = plan(recipe)
    rows = [row for row in train(recipe, out=tmp_path / "run", progress=False).metrics() if "loss" in row]
    assert forecast.counts.tokens == sum(row["tokens"] for row in rows)
    assert 0 < forecast.counts.image_tokens < forecast.counts.tokens and forecast.fits
    saved = f"model.checkpoint={tmp_path / 'run' / 'checkpoints' / 'last'}"
    again = plan(recipe.with_overrides(saved, "model.vision=null", "model.language=null"))
    assert again.counts.tokens == forecast.counts.tokens


@FORESEEN
def test_memory_is_foreseen_as_the_step_takes_it(
    ready: Made, recipe_of: Made, make_llava: Made, way: tuple[str, ...]
) -> None:
    _, _, lengths, feed, _ = ready()
    feed.store.close()
    worst = worst_pack(lengths, 600)
    recipe = recipe_of("unused", *way)
    assert_foreseen(recipe, worst, make_llava)
