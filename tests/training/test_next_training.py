"""LLaVA-NeXT trains: packs of pictures of all sizes are exact, runs resume to the bit, plans say what is then done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import polars as pl
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

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
from workbench.errors import ImageError, ModelError, TrainingError
from workbench.model.export import export_hf
from workbench.model.llava import build, load
from workbench.model.proof import probe
from workbench.training.dry_run import dry_run
from workbench.training.examples import to_example
from workbench.training.mixture import read_sources
from workbench.training.plan import plan
from workbench.training.sizes import find_sizes
from workbench.training.source import find_images, read_source
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
NEXT = ("image_mode=anyres", "train.max_tokens=400", "train.pack_tokens=500")


@pytest.fixture
def pictures(make_dataset: Made) -> Dataset:
    """The dataset of all training tests, its pictures of several sizes."""
    dataset = make_dataset(images=len(SIZES))
    draw(dataset)
    both = (Message("user", (Image("0.png"), "and", Image("2.png"), "?")), Message("assistant", ("Two.",)))
    dataset.add_conversations([Conversation("both", both, task="conversation")])
    return dataset


@pytest.fixture
def ready(pictures: Dataset, make_recipe: Made, make_llava: Made, off_zero: Made) -> Made:
    """`ready("train.language=lora", ...)`: (llava prepared, examples, lengths, feed of them, files)."""

    def made(*overrides: str) -> Any:
        recipe = make_recipe(pictures, *NEXT, "data.val_fraction=0", *overrides)
        llava = make_llava(recipe)
        examples, lengths, feed, _, files = prepared(recipe, llava, off_zero, 500)
        return llava, examples, lengths, feed, files

    return made


def images_of(llava: Any, files: dict[str, Path]) -> Callable[[Sequence[str]], Any]:
    """Key of images -> the pixels and sizes that transformers' own forward takes."""

    def made(keys: Sequence[str]) -> Any:
        shown = [llava.show(load_image(files[key])) for key in keys]
        most = max(len(one.tiles) for one in shown)
        tiles = [torch.cat([one.tiles, one.tiles.new_zeros(most - len(one.tiles), 3, 24, 24)]) for one in shown]
        sizes = torch.tensor([[one.size[1], one.size[0]] for one in shown])
        return {"pixel_values": torch.stack(tiles), "image_sizes": sizes}

    return made


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@EXACT
def test_packs_of_pictures_of_all_sizes_give_transformers_loss_and_gradients(
    ready: Made, overrides: tuple[str, ...], share: bool
) -> None:
    llava, examples, lengths, feed, files = ready(*overrides)
    expected = vanilla(llava, examples, images_of(llava, files))
    assert_exact(llava, lengths, feed, expected, 500, share=share)


def test_lengths_count_tiles_and_tokens_of_every_picture(ready: Made, pictures: Dataset) -> None:
    llava, examples, lengths, feed, _ = ready()
    feed.store.close()
    tiling, tokens = llava.tiling, {f"images/{n}.png": size for n, size in enumerate(SIZES)}
    assert len({tiling.tokens(size) for size in SIZES}) == len(SIZES)
    for example, entry in zip(examples, lengths.entries(), strict=True):
        sizes = [tokens[key] for key in example.images]
        assert example.sizes == tuple(sizes)
        assert entry.image_tokens == sum(map(tiling.tokens, sizes)) and entry.tiles == sum(map(tiling.tiles, sizes))
        assert entry.tokens == example.tokens == len(example.expand()[0])
        shared = sizes[: example.shared_images]
        assert entry.shared_image_tokens == sum(map(tiling.tokens, shared))
        assert entry.shared_tiles == sum(map(tiling.tiles, shared))
    with pytest.raises(ModelError, match="no sizes of images"):
        to_example(examples.rows[0], llava)


def test_a_picture_that_became_another_size_is_measured_anew_and_named_if_it_changes_in_between(
    ready: Made, pictures: Dataset
) -> None:
    _, _, before, feed, files = ready()
    feed.store.close()
    PIL.Image.new("RGB", (48, 48)).save(files["images/0.png"])
    _, _, after, feed, files = ready()
    changed = [
        n for n, (a, b) in enumerate(zip(before.entries(), after.entries(), strict=True)) if a.tokens != b.tokens
    ]
    assert changed and all(before.ids[n].startswith(("c0.", "both")) for n in changed)
    PIL.Image.new("RGB", (20, 48)).save(files["images/0.png"])
    with (
        feed.store,
        pytest.raises(ImageError, match=r"0.png: found 20 x 48 pixels; expected 48 x 48 pixels, as recorded"),
    ):
        feed.store.get(["images/0.png"])


def test_two_stages_resume_merge_and_vanilla_transformers(
    tmp_path: Path, pictures: Dataset, make_recipe: Made, start: Made
) -> None:
    """The whole way: align, fine-tune 4-bit from it, stopped and resumed; export; transformers says the same."""
    align = make_recipe(
        pictures, *NEXT, "train.stage=align", "train.language=frozen", "train.lr=5e-3",
    )  # fmt: skip
    first = train(align, out=tmp_path / "align", progress=False)
    fresh, trained = fresh_newline(align), load(first.path, device="cpu").newline
    assert not torch.equal(trained, fresh), "the newline trains with the projector"
    more = (f"model.projector_from={first.path}", "model.load=4bit", "train.max_steps=6", "train.save_every=2")
    recipe = make_recipe(pictures, *NEXT, *more, "train.eval_every=3")
    whole, broken = assert_goes_on(tmp_path, recipe, start)
    assert torch.equal(load(broken, device="cpu").newline, load(whole, device="cpu").newline)
    folder = export_hf(whole, tmp_path / "out", device="cpu")
    llava, merged = load(whole, device="cpu"), load(folder, device="cpu")
    torch.testing.assert_close(probe(merged)[1], probe(llava)[1], rtol=1e-3, atol=1e-3)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    picture = load_image(pictures.path / "images" / "1.png")
    inputs = processor(text="<image>hi", images=picture, return_tensors="pt")
    with torch.no_grad():
        rows = merged.look([merged.show(picture)])
        ours = merged.model(input_ids=inputs["input_ids"], mm_encoder_outputs=merged.image_inputs(rows)).logits
        torch.testing.assert_close(model(**inputs).logits, ours, rtol=1e-4, atol=1e-4)


def fresh_newline(recipe: Any) -> torch.Tensor:
    return build(recipe.model, template=recipe.template, image_mode="anyres", seed=recipe.train.seed).newline


def test_features_kept_on_the_disk_and_in_memory_train_to_the_same_bits(
    tmp_path: Path, pictures: Dataset, make_recipe: Made
) -> None:
    assert_kept_or_not(tmp_path, lambda kept: make_recipe(pictures, *NEXT, kept))


def test_a_plan_says_what_training_then_does(tmp_path: Path, pictures: Dataset, make_recipe: Made) -> None:
    recipe = make_recipe(pictures, *NEXT, "train.max_steps=null", "data.val_fraction=0")
    forecast = plan(recipe)
    rows = [row for row in train(recipe, out=tmp_path / "run", progress=False).metrics() if "loss" in row]
    assert forecast.counts.tokens == sum(row["tokens"] for row in rows)
    assert 0 < forecast.counts.image_tokens < forecast.counts.tokens
    llava = load(tmp_path / "run", device="cpu")
    tokens = llava.tiling.tokens(SIZES[0])
    assert f"[image: {tokens} tokens]" in str(forecast) and forecast.fits
    tiles = sum(map(llava.tiling.tiles, SIZES))
    assert forecast.cache.size == pytest.approx(tiles * 9 * 32 * 4, rel=0.15), "by the mean of what conversations show"
    saved = f"model.checkpoint={tmp_path / 'run' / 'checkpoints' / 'last'}"
    again = plan(recipe.with_overrides(saved, "model.vision=null", "model.language=null"))
    assert again.counts.tokens == forecast.counts.tokens


@FORESEEN
def test_memory_is_foreseen_as_the_step_takes_it(
    ready: Made, make_recipe: Made, make_llava: Made, way: tuple[str, ...]
) -> None:
    _, _, lengths, feed, _ = ready()
    feed.store.close()
    worst = worst_pack(lengths, 500)
    recipe = make_recipe("unused", *NEXT, *way)
    assert_foreseen(recipe, worst, make_llava)
    if "train.language=lora" in way:
        assert dry_run(recipe, worst).peak > 0


def test_what_cannot_be_read_is_named_before_the_first_step(
    tmp_path: Path, pictures: Dataset, make_recipe: Made
) -> None:
    (pictures.path / "images" / "3.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(TrainingError, match=r"c3\.0 and \d+ more \(.*3\.png\): found a damaged"):
        train(make_recipe(pictures, *NEXT), out=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_sizes_are_taken_from_where_they_are_recorded(pictures: Dataset, make_recipe: Made, make_llava: Made) -> None:
    """From conversations, then the dataset's table, then the file; also of the second dataset of a mixture."""
    carried = (Message("user", (Image("0.png", width=7, height=8), "?")), Message("assistant", ("!",)))
    pictures.add_conversations([Conversation("carried", carried, task="conversation")])
    rows = pictures.images.select("id", "path").filter(pl.col("path").is_in(["0.png", "1.png"]))
    pictures.update_images(rows.select("id", width=pl.lit(17), height=pl.lit(18)), operation={"name": "planted"})
    recipe = make_recipe(pictures, *NEXT, "data.val_fraction=0")
    tiling = make_llava(recipe).tiling
    source = read_source(recipe.data, seed=0)
    sizes = find_sizes(source, find_images(source), tiling)
    assert sizes == {f"images/{n}.png": size for n, size in enumerate([(7, 8), (17, 18), *SIZES[2:]])}
    both = make_recipe(pictures, *NEXT, "data.val_fraction=0", f"data.mix=[{{dataset: {pictures.path}}}]")
    mixed = read_sources(both.data, seed=0, say=lambda text: None)
    sizes = find_sizes(mixed, find_images(mixed), tiling)
    assert sizes is not None and len(sizes) == 2 * len(SIZES)
    assert [size for key, size in sizes.items() if key.endswith(":images/1.png")] == [(17, 18)]
    assert find_sizes(source, {}, make_llava(make_recipe()).tiling) is None
