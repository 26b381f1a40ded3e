"""Models that read videos train on them and on pictures: transformers' loss and gradients, a killed run, plans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

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
)
from tests.videos import moving
from workbench.conversation import Conversation, Image, Message, Video
from workbench.data.dataset import Dataset
from workbench.data.images import load_image
from workbench.data.video import Film
from workbench.errors import TrainingError
from workbench.model.export import export_hf, processor
from workbench.model.llava import load
from workbench.model.proof import probe
from workbench.training.feature_cache import FeatureCache
from workbench.training.feature_key import feature_key
from workbench.training.mixture import read_sources
from workbench.training.plan import plan
from workbench.training.sizes import file_key, shown_keys
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
FRAMES, MOST = 6, 600
USUAL = (f"train.max_tokens={MOST}", f"train.pack_tokens={MOST}")
MODES = {
    "next": (f"image_mode=anyres_video_{FRAMES}",),
    "onevision": (f"image_mode=anyres_max_2_video_{FRAMES}", "template=qwen"),
}
LENGTHS = {"a.mp4": 14, "b.mp4": 9, "short.mp4": 3}
"""Frames of the videos; the last has fewer than are shown, and fills a part of one tile."""


@pytest.fixture(params=MODES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe_of(family: str, make_recipe: Made, video_parts: str, onevision_parts: tuple[str, str]) -> Made:
    """`recipe_of(dataset, "train.language=full", ...)`"""
    parts = {"next": (video_parts,), "onevision": onevision_parts}[family]
    return lambda dataset, *overrides: make_recipe(dataset, *parts, *USUAL, *MODES[family], *overrides)


def filmed(name: str, number: int) -> Conversation:
    asked = Message("user", (Video(name), "What moves?" + "!" * number))
    return Conversation(f"{name}.{number}", (asked, Message("assistant", ("A patch." + "!" * number,))), task="video")


@pytest.fixture
def films(make_dataset: Made) -> Dataset:
    """Pictures of several sizes, three videos with three conversations each, and two about both."""
    dataset: Dataset = make_dataset(images=len(SIZES), each=2)
    draw(dataset)
    (dataset.path / "videos").mkdir()
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        moving(dataset.path / "videos" / name, frames, seed=seed)
    dataset.describe(roots={**dataset.card["roots"], "videos": "videos"})
    asked = {"mixed": (Image("0.png"), "Is this in", Video("a.mp4"), "?")}
    asked["several"] = (Image("0.png"), Video("a.mp4"), Image("2.png"), Video("b.mp4"), "Which?")
    answer = Message("assistant", ("No.",))
    both = [Conversation(id, (Message("user", parts), answer), task="video") for id, parts in asked.items()]
    dataset.add_conversations([*(filmed(name, number) for name in LENGTHS for number in range(3)), *both])
    return dataset


@pytest.fixture
def ready(films: Dataset, recipe_of: Made, make_llava: Made, off_zero: Made) -> Made:
    """`ready("train.language=lora", ...)`: (llava prepared, examples, lengths, feed of them, files); the source too."""

    def made(*overrides: str, source: bool = False) -> Any:
        recipe = recipe_of(films, "data.val_fraction=0", *overrides)
        llava = make_llava(recipe)
        examples, lengths, feed, read, files = prepared(recipe, llava, off_zero, MOST)
        return (llava, examples, lengths, feed, files, *([read] if source else []))

    return made


def media_of(llava: Any, files: dict[str, Path]) -> Callable[[Sequence[str]], Any]:
    """Keys -> pictures as transformers' own processor makes them, and the frames of videos."""

    def made(keys: Sequence[str]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        paths = [files[file_key(key)] for key in keys]
        pictures = [load_image(path) for path in paths if path.suffix == ".png"]
        films = [llava.image_mode.frames(Film(path).frames(FRAMES)) for path in paths if path.suffix == ".mp4"]
        if pictures:
            inputs |= processor(llava).image_processor([pictures], return_tensors="pt")
        return inputs | ({"pixel_values_videos": torch.stack(films)} if films else {})

    return made


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@EXACT
def test_packs_of_pictures_and_videos_give_transformers_loss_and_gradients(
    ready: Made, overrides: tuple[str, ...], share: bool
) -> None:
    llava, examples, lengths, feed, files = ready(*overrides)
    config = llava.model.config
    marks = {"png": config.image_token_id, "mp4": config.video_token_id}
    expected = vanilla(llava, examples, media_of(llava, files), lambda key: marks[file_key(key)[-3:]])
    assert_exact(llava, lengths, feed, expected, MOST, share=share)


def test_a_video_counts_by_the_frames_it_has_and_conversations_about_one_share_it(ready: Made, family: str) -> None:
    llava, examples, lengths, feed, _, source = ready(source=True)
    feed.store.close()
    entries = dict(zip([one.id for one in examples], lengths.entries(), strict=True))
    for name, frames in LENGTHS.items():
        shown = min(frames, FRAMES)
        about = [entries[f"{name}.{number}"] for number in range(3)]
        tokens, tiles = {"next": (shown * 4, -(-shown // 4)), "onevision": (shown * 4 + 1, shown)}[family]
        for entry in about:
            assert (entry.image_tokens, entry.squares, entry.tiles) == (tokens, shown, tiles)
        assert len({entry.key for entry in about}) == 1 and about[0].key is not None
        assert about[0].prefix > tokens
    assert len({entries[f"{name}.0"].key for name in LENGTHS} | {entries["mixed"].key}) == 4
    alone, film = llava.tiling.tiles(SIZES[0]), {"next": 2, "onevision": 6}[family]
    assert (entries["mixed"].tiles, entries["mixed"].squares) == (alone + film, alone + 6)
    beside = {"next": alone + llava.tiling.tiles(SIZES[2]), "onevision": 2}[family]
    assert (entries["several"].tiles, entries["several"].squares) == (beside + 2 * film, beside + 12)
    keys = {key for rows in (source.train, source.val) for keys in shown_keys(rows, llava.tiling) for key in keys}
    assert keys == {key for example in examples for key in example.images}


def test_a_video_that_changed_since_it_was_counted_is_named(ready: Made) -> None:
    _, _, _, feed, files = ready()
    moving(files["videos/a.mp4"], 4)
    with feed.store, pytest.raises(Exception, match=r"a.mp4: found 4 frames to show; expected 6, as counted"):
        feed.store.get(["videos/a.mp4"])


def test_a_video_that_changed_before_a_run_is_counted_anew(ready: Made, family: str) -> None:
    counted = []
    for _ in range(2):
        _, examples, lengths, feed, files = ready()
        feed.store.close()
        tokens = dict(zip([one.id for one in examples], lengths.frame["image_tokens"], strict=True))
        counted.append((tokens["a.mp4.0"], tokens["b.mp4.0"]))
        moving(files["videos/a.mp4"], 4)  # it had 14
    more = {"next": 0, "onevision": 1}[family]
    assert counted == [(6 * 4 + more, 6 * 4 + more), (4 * 4 + more, 6 * 4 + more)]


def test_what_is_kept_is_kept_apart_where_frames_are_pooled_or_shown_otherwise(ready: Made, family: str) -> None:
    llava, _, _, feed, _ = ready()
    feed.store.close()
    keys = [feature_key(llava, torch.float32, 1)]
    if family == "next":
        llava.model.config.spatial_pool_mode = "max"
        keys.append(feature_key(llava, torch.float32, 1))
        llava.model.config.spatial_pool_mode = "average"
    llava.image_mode.film.mean = (0.4, 0.5, 0.5)
    keys.append(feature_key(llava, torch.float32, 1))
    assert len({json.dumps(one, sort_keys=True) for one in keys}) == len(keys)


def test_what_is_kept_of_a_video_is_what_the_projector_is_given(ready: Made, films: Dataset, family: str) -> None:
    llava, _, _, feed, _ = ready()
    with feed.store as store:
        rows = store.get(["videos/a.mp4", "videos/short.mp4"])
        shown = [llava.show(Film(films.path / "videos" / name)) for name in ("a.mp4", "short.mp4")]
        expected = [llava.gather(llava.tower_features(one.tiles), [one.size]) for one in shown]
        torch.testing.assert_close(rows, torch.cat(expected), rtol=1e-5, atol=1e-5)
        assert isinstance(store.cache, FeatureCache)
        assert rows.shape == {"next": (2 + 1, 16, 16), "onevision": (6 + 3, 9, 32)}[family]
        assert family == "onevision" or not rows[-1, 12:].any(), "three frames of four tokens, then nothing"


@pytest.mark.parametrize("form", ["4bit", "fp32"])
def test_two_stages_resume_merge_and_vanilla_transformers(
    tmp_path: Path, films: Dataset, recipe_of: Made, start: Made, form: str
) -> None:
    """The whole way: align, fine-tune from it, killed and resumed; export; transformers agrees about both."""
    align = recipe_of(films, "train.stage=align", "train.language=frozen", "train.lr=5e-3")
    first = train(align, out=tmp_path / "align", progress=False)
    more = (f"model.projector_from={first.path}", f"model.load={form}")
    recipe = recipe_of(films, *more, "train.max_steps=6", "train.save_every=2", "train.eval_every=3")
    whole, _ = assert_goes_on(tmp_path, recipe, start)
    folder = export_hf(whole, tmp_path / "out", device="cpu")
    llava, merged = load(whole, device="cpu"), load(folder, device="cpu")
    torch.testing.assert_close(probe(merged)[1], probe(llava)[1], rtol=1e-3, atol=1e-3)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    film = merged.show(Film(films.path / "videos" / "b.mp4"))
    rendered = merged.renderer.prompt(filmed("b.mp4", 0).prompt)
    ids, theirs = (torch.tensor([merged.renderer.expand(rendered, [merged.tiling.tokens(film.size)], mark)[0]])
                   for mark in (merged.image_token_id, model.config.video_token_id))  # fmt: skip
    with torch.no_grad():
        ours = merged.model(input_ids=ids, mm_encoder_outputs=merged.image_inputs(merged.look([film]))).logits
        logits = model(input_ids=theirs, pixel_values_videos=film.tiles[None]).logits
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)


def test_features_kept_on_the_disk_and_in_memory_train_to_the_same_bits(
    tmp_path: Path, films: Dataset, recipe_of: Made
) -> None:
    assert_kept_or_not(tmp_path, lambda kept: recipe_of(films, kept))


def test_a_plan_says_what_training_then_does_and_answers_are_about_videos_too(
    tmp_path: Path, films: Dataset, recipe_of: Made
) -> None:
    recipe = recipe_of(films, "train.max_steps=null", "data.val_fraction=0.4", "train.answers_every=5")
    forecast = plan(recipe)
    run = train(recipe, out=tmp_path / "run", progress=False)
    rows = [row for row in run.metrics() if "loss" in row]
    assert forecast.counts.tokens == sum(row["tokens"] for row in rows)
    assert re.search(r"conversations about \d+ images and [123] videos to train on", str(forecast))
    assert 0 < forecast.counts.image_tokens < forecast.counts.tokens and forecast.fits
    said = [json.loads(line) for line in (run.path / "answers.jsonl").read_text().splitlines()]
    asked = [one for one in said[-1]["answers"] if one["task"] == "video"]
    assert asked and all((run.path / one["picture"]).is_file() for one in asked)


@FORESEEN
def test_memory_is_foreseen_as_the_step_takes_it(
    ready: Made, recipe_of: Made, make_llava: Made, way: tuple[str, ...]
) -> None:
    _, _, lengths, feed, _ = ready()
    feed.store.close()
    assert_foreseen(recipe_of("unused", *way), worst_pack(lengths, MOST), make_llava)


def test_models_that_read_no_videos_refuse_to_train_on_them(films: Dataset, make_recipe: Made, tmp_path: Path) -> None:
    for mode in ("pad", "anyres"):
        recipe = make_recipe(films, f"image_mode={mode}", "train.max_tokens=500")
        with pytest.raises(
            TrainingError, match=r"(?s)11 of 20 conversations.*found a video; .*: 11: a.mp4.0, message 0; a.mp4.1"
        ) as told:
            train(recipe, out=tmp_path / mode, progress=False)
        assert "--set data.videos=false" in str(told.value)
    mixed = [f"data.mix=[{{dataset: {films.path}, repeat: 1.0}}]", "data.videos=false"]
    said: list[str] = []
    alone, both = (
        read_sources(make_recipe(films, *overrides).data, seed=0, say=said.append) for overrides in (mixed[1:], mixed)
    )
    assert [line for line in said if "videos" in line] == [
        f"{count} conversations about videos left out (data.videos: false)" for count in (11, 22)
    ]
    assert len(alone.train) + len(alone.val) == 11 and not alone.train.videos | alone.val.videos
    assert len(both.train) and not both.train.videos | both.val.videos
    assert train(recipe.with_overrides("data.videos=false"), out=tmp_path / "run", progress=False).status == "finished"


def test_a_llava_file_of_videos_trains_as_it_is(films: Dataset, recipe_of: Made, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": "A patch."}]
    records = [{"id": name, "video": name, "conversations": turns} for name in LENGTHS]
    (tmp_path / "talks.json").write_text(json.dumps(records))
    where = f"data.images={films.path / 'videos'}"
    run = train(
        recipe_of(tmp_path / "talks.json", where, "data.val_fraction=0.4"), out=tmp_path / "run", progress=False
    )
    assert [row for row in run.metrics() if "loss" in row]
