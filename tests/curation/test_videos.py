"""Videos beside pictures from the import to what is trained on: split, compared, looked at in FiftyOne, taken out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image as PILImage

from tests.videos import moving, painted, written
from workbench.chat_model import ScriptedModel
from workbench.cli import main
from workbench.conversation import Video
from workbench.curation.describe import describe
from workbench.curation.duplicates import near_groups
from workbench.curation.filters import curate
from workbench.curation.image_measures import image_measures
from workbench.curation.measures import vectors
from workbench.curation.posters import posters
from workbench.curation.refresh import view_of
from workbench.curation.splits import check_benchmark, check_leakage, split
from workbench.curation.table import changes, ids_of
from workbench.curation.text_measures import texts_of
from workbench.data.dataset import Dataset
from workbench.data.formats import import_llava
from workbench.data.image_rows import image_rows
from workbench.data.video import Film
from workbench.evaluation.task import derange
from workbench.instruct.generator import generate
from workbench.instruct.judging import judge_dataset
from workbench.plugin.desk import Desk
from workbench.recipe import DataSpec
from workbench.training.source import find_images, read_source
from workbench.widgets.gallery import gallery

CLIPS, STILLS, EACH = 6, 6, 3
Drawn = Callable[..., Path]


def _record(key: str, name: str, number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nWhat is it?{'!' * number}"}, {"from": "gpt", "value": f"A {name}."}]
    return {"id": f"{name}-{number}", key: name, "conversations": turns}


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    """Six clips and six stills, three conversations each, and a clip that is no video."""
    media = tmp_path / "media"
    media.mkdir()
    for number in range(CLIPS):
        moving(media / f"{number}.mp4", 5, seed=100 + number)
    for number in range(STILLS):
        painted(number, seed=7).save(media / f"{number}.png")
    (media / "text.mp4").write_text("no video")
    records = [_record("video", f"{n}.mp4", k) for n in range(CLIPS) for k in range(EACH)]
    records += [_record("image", f"{n}.png", k) for n in range(STILLS) for k in range(EACH)]
    records.append(_record("video", "text.mp4", 0))
    (tmp_path / "talks.json").write_text(json.dumps(records))
    return import_llava(tmp_path / "talks.json", media, tmp_path / "data", name="mixed")


@pytest.fixture
def drawn(tmp_path: Path, helpers: SimpleNamespace) -> Drawn:
    """`drawn("a.mp4", 3, codec=...)`: a still of shapes as a video among the others; one number is one picture."""

    def make(name: str, seed: int, **settings: Any) -> Path:
        picture = helpers.draw(seed)
        return written(tmp_path / "media" / name, iter([picture] * 4), picture.size, **settings)

    return make


def _parts(dataset: Dataset) -> dict[str, set[str]]:
    """What each split's conversations are about."""
    names = ("train", "val", "test")
    return {name: {one.media[0].path for one in dataset.iter_conversations(name)} for name in names}


# --- splits ---------------------------------------------------------------------------------------------------------


def test_videos_are_parted_and_no_conversation_about_one_leaks(mixed: Dataset) -> None:
    rows = split(mixed, {"train": 0.5, "val": 0.25, "test": 0.25})
    assert rows.height == CLIPS + STILLS
    parts = _parts(mixed)
    assert sum(map(len, parts.values())) == CLIPS + STILLS, "each in one split alone"
    assert all(any(name.endswith(".mp4") for name in some) for some in parts.values())
    assert check_leakage(mixed).is_empty()
    assert len(mixed.conversations("train")) == EACH * len(parts["train"])


def test_a_conversation_of_another_split_than_its_video_leaks(mixed: Dataset) -> None:
    split(mixed, {"train": 1.0, "val": 0.0, "test": 0.0})
    first = next(one for one in mixed.iter_conversations() if isinstance(one.media[0], Video))
    mixed.edit({"table": "conversations", "id": first.id, "set": {"split": "test"}})
    found = check_leakage(mixed)
    assert set(found["kind"]) == {"conversation"} and found["id"].n_unique() == 1


def test_a_near_copy_of_a_video_and_a_picture_of_its_first_frame_stay_together(
    mixed: Dataset, tmp_path: Path, drawn: Drawn
) -> None:
    first = drawn("first.mp4", 1)
    drawn("copy.webm", 1, codec="libvpx-vp9", kind="webm")
    Film(first).first().save(tmp_path / "media" / "frame.png")
    names = ["first.mp4", "copy.webm", "frame.png"]
    mixed.add_images(image_rows(tmp_path / "media", names, videos=names[:2], workers=1))
    for seed in range(6):
        splits = dict(split(mixed, {"train": 0.4, "val": 0.3, "test": 0.3}, seed=seed).iter_rows())
        rows = mixed.images.filter(pl.col("path").is_in(names))
        assert rows.height == 3 and len({splits[name] for name in rows["id"]}) == 1
        assert check_leakage(mixed).is_empty()


def test_a_picture_of_the_title_takes_no_video_out_and_stays_with_all_of_them(
    mixed: Dataset, tmp_path: Path, helpers: SimpleNamespace
) -> None:
    title = helpers.draw(50)
    names = ["v0.mp4", "v1.mp4", "title.png"]
    for number, name in enumerate(names[:2]):
        shots = [title, title, *[helpers.draw(60 + number)] * 3]
        written(tmp_path / "media" / name, iter(shots), title.size)
    Film(tmp_path / "media" / "v0.mp4").first().save(tmp_path / "media" / "title.png")
    mixed.add_images(image_rows(tmp_path / "media", names, videos=names[:2], workers=1))
    found = near_groups(mixed, mixed.images.filter(status="ok"))
    paths = dict(mixed.images.select("id", "path").iter_rows())
    assert sorted(paths[name] for name in found["id"]) == sorted(names), "which split and check_leakage go by"
    assert curate(mixed).removed.filter(filter="near duplicates").is_empty()


def test_videos_that_only_begin_alike_are_no_copies(mixed: Dataset, tmp_path: Path, helpers: SimpleNamespace) -> None:
    title = helpers.draw(50)
    names = [f"titled {number}.mp4" for number in range(3)]
    for number, name in enumerate(names):
        shots = [title, title, *[helpers.draw(60 + min(number, 1))] * 3]
        written(tmp_path / "media" / name, iter(shots), title.size, codec=("mpeg4", "mpeg4", "libx264")[number])
    rows = image_rows(tmp_path / "media", names, videos=names, workers=1)
    mixed.add_images(rows)
    groups = near_groups(mixed, mixed.images.filter(status="ok"))
    paths = dict(mixed.images.select("id", "path").iter_rows())
    assert sorted(paths[name] for name in groups["id"]) == names[1:], "the two that end alike as well"
    assert groups["kind"].to_list().count("near") == 1 and groups["distance"].max() < 18


def test_a_benchmark_s_video_is_found_among_ours(mixed: Dataset, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    bench.mkdir()
    shutil.copy(tmp_path / "media" / "2.mp4", bench / "q.mp4")
    moving(bench / "other.mp4", 5, seed=999)
    found = check_benchmark(mixed, bench, workers=1)
    assert found.select("path", "file", "kind").rows() == [("2.mp4", "q.mp4", "exact")]


def test_a_picture_that_a_benchmark_names_as_a_video_is_compared_as_the_picture_it_is(
    mixed: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "bench").mkdir()
    shutil.copy(tmp_path / "media" / "2.png", tmp_path / "bench" / "still.mp4")
    found = check_benchmark(mixed, tmp_path / "bench", workers=1)
    assert found.select("path", "file", "kind").rows() == [("2.png", "still.mp4", "exact")]


# --- cleaning -------------------------------------------------------------------------------------------------------


def test_broken_videos_and_copies_are_left_out(mixed: Dataset, tmp_path: Path, drawn: Drawn) -> None:
    media = tmp_path / "media"
    shutil.copy(media / "1.mp4", media / "same.mp4")
    drawn("drawn.mp4", 1), drawn("near.mp4", 1, codec="libx264")
    names = ["same.mp4", "drawn.mp4", "near.mp4"]
    mixed.add_images(image_rows(media, names, videos=names, workers=1))
    (media / "5.mp4").unlink()
    funnel = curate(mixed)
    assert dict(funnel.table.select("name", "removed").iter_rows()) == {
        "broken": 2, "exact duplicates": 1, "near duplicates": 1,
    }  # fmt: skip
    rows = {row["path"]: row["status"] for row in mixed.images.iter_rows(named=True)}
    assert (rows["text.mp4"], rows["5.mp4"]) == ("quarantined", "quarantined")
    assert {rows["1.mp4"], rows["same.mp4"]} == {"ok", "removed"} == {rows["drawn.mp4"], rows["near.mp4"]}
    assert funnel.to_html().count('<img alt="" src="data:image/jpeg') == 2, "copies are shown; broken ones cannot be"
    assert not [one for one in mixed.iter_conversations() if one.media[0].path in ("5.mp4", "text.mp4")]


def test_measures_and_vectors_are_those_of_the_first_frame(mixed: Dataset, tmp_path: Path) -> None:
    rows = mixed.images.filter(path="3.mp4")
    frame = Film(tmp_path / "media" / "3.mp4").frames(1)[0]
    told = image_measures(mixed, rows, workers=1).row(0, named=True)
    assert told["bytes"] == (tmp_path / "media" / "3.mp4").stat().st_size
    assert told["brightness"] == pytest.approx(np.asarray(frame.convert("L")).mean(), abs=1e-6)
    seen: list[PILImage.Image] = []
    vectors(mixed, lambda some: seen.extend(some) or np.ones((len(some), 2)), name="ones", images=rows)
    assert [one.tobytes() for one in seen] == [frame.tobytes()]


def test_what_is_said_about_a_video_is_a_text_of_it(mixed: Dataset) -> None:
    texts = texts_of(mixed, mixed.images.filter(path="4.mp4"))
    assert texts["text"].to_list() == ["A 4.mp4."] * EACH
    told = describe(mixed)
    assert (told.images, told.videos) == (STILLS, CLIPS)
    assert str(told).startswith(f"mixed: {STILLS} images and {CLIPS} videos, {EACH * (CLIPS + STILLS)} conversations")
    assert told.per_image.rows() == [(EACH, CLIPS + STILLS)]


def test_nothing_is_written_about_videos_and_that_is_said(mixed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    rows = mixed.images.select("id", captions=pl.lit(["a thing"], pl.List(pl.String)))
    mixed.update_images(rows, operation={"name": "captions"})
    generate(mixed, tasks=["caption"], questions_per_image=0)
    assert f"left out: {CLIPS} videos, about which nothing is written" in capsys.readouterr().out
    made = [one for one in mixed.iter_conversations() if one.task == "caption"]
    assert len(made) == STILLS and all(one.images for one in made)


def test_no_judge_is_asked_about_a_video(mixed: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ScriptedModel(lambda _: json.dumps({"reason": "because", "score": 9}))
    judged = judge_dataset(mixed, judge)
    assert f"left out: {CLIPS * EACH:,} about videos" in capsys.readouterr().out
    pictures = {one.id for one in mixed.iter_conversations() if one.images}
    assert set(judged.table["id"]) == pictures and len(pictures) == STILLS * EACH


def test_another_video_is_shown_for_the_baseline(mixed: Dataset) -> None:
    films = [one for one in mixed.iter_conversations() if isinstance(one.media[0], Video)]
    other = derange(films, seed=0)
    assert all(isinstance(one.media[0], Video) for one in other)
    assert not [old.id for old, new in zip(films, other, strict=True) if old.media == new.media]


def test_a_gallery_shows_the_first_frames(mixed: Dataset) -> None:
    view = gallery(mixed)
    asked = [one.media[0] for one in mixed.iter_conversations()]
    assert len(view.items) == len(asked) and any(isinstance(one, Video) for one in asked)
    assert all(str(view._picture(number)).startswith("data:image/jpeg") for number in range(len(asked)))
    rows = gallery(mixed.images.filter(status="ok").select("id"), dataset=mixed)
    assert all(rows._picture(number) for number in range(CLIPS + STILLS))


# --- FiftyOne, and what is trained on -------------------------------------------------------------------------------


def test_a_video_is_looked_at_tagged_and_taken_out_and_then_not_trained_on(
    mixed: Dataset, fiftyone: ModuleType, tmp_path: Path
) -> None:
    split(mixed, {"train": 0.5, "val": 0.25, "test": 0.25})
    view = view_of(mixed)
    assert view.media_type == "image" and len(view) == CLIPS + STILLS + 1
    rows = {row["path"]: row for row in mixed.images.iter_rows(named=True)}
    by_id = {sample.workbench_id: sample for sample in view}
    clip = by_id[rows["0.mp4"]["id"]]
    assert clip.video == str(tmp_path / "media" / "0.mp4") and clip.filepath.endswith(".jpg")
    with PILImage.open(clip.filepath) as poster:
        assert poster.size == (clip.metadata.width, clip.metadata.height) == (64, 48)
        first = np.asarray(Film(tmp_path / "media" / "0.mp4").first(), np.float32)
        assert np.abs(np.asarray(poster, np.float32) - first).mean() < 6
    assert len(clip.conversations.classifications) == EACH and clip.tags == [rows["0.mp4"]["split"]]
    desk = Desk(view)
    talk = next(one for one in mixed.iter_conversations() if one.media[0].path == "0.mp4")
    assert desk.show(talk.id)["images"] == [clip.filepath], "the panel shows the poster"
    assert by_id[rows["0.png"]["id"]].video is None
    broken = by_id[rows["text.mp4"]["id"]]
    assert broken.tags == ["broken"] and broken.filepath == broken.video

    gone = next(name for name in sorted(_parts(mixed)["train"]) if name.endswith(".mp4"))
    one = view.select_by("workbench_id", [rows[gone]["id"]])
    one.tag_samples(["removed", "shaky"])
    mixed.update_images(changes(view, mixed), operation={"name": "look"})
    row = mixed.images.filter(path=gone).row(0, named=True)
    assert (row["status"], row["reason"], row["tags"]) == ("removed", "removed by hand", ["shaky"])
    assert row["media"] == "video" and changes(view_of(mixed), mixed).is_empty()
    assert ids_of(view_of(mixed).match_tags("removed")) == [row["id"]]

    source = read_source(DataSpec(dataset=str(mixed.path)), seed=0)
    trained, held = ({one.media[0].path for one in rows} for rows in (source.train, source.val))
    parts = _parts(mixed)
    assert trained == parts["train"] and held == parts["val"] and gone not in trained | held
    assert source.left_out == EACH + 1, "of the one that was taken out, and of the one that is no video"
    assert all(path.is_file() for path in find_images(source).values())


def test_val_fraction_holds_out_whole_videos(mixed: Dataset) -> None:
    source = read_source(DataSpec(dataset=str(mixed.path), val_fraction=0.3), seed=0)
    trained, held = ({one.media[0].path for one in rows} for rows in (source.train, source.val))
    assert not trained & held and any(name.endswith(".mp4") for name in held)


def test_the_size_of_a_video_s_row_is_not_taken_for_a_picture_s(mixed: Dataset) -> None:
    source = read_source(DataSpec(dataset=str(mixed.path)), seed=0)
    assert sorted(source.recorded()["key"]) == sorted(f"images/{number}.png" for number in range(STILLS))


def test_a_poster_that_was_cleaned_away_is_made_again(mixed: Dataset, fiftyone: ModuleType) -> None:
    made = posters(mixed, mixed.images)
    assert len(made) == CLIPS
    view = view_of(mixed)
    for place in made.values():
        place.unlink()
    assert view_of(mixed).name == view.name and all(place.is_file() for place in made.values())


def test_a_dataset_of_pictures_has_no_field_for_videos(shapes: Dataset, fiftyone: ModuleType) -> None:
    assert "video" not in view_of(shapes).get_field_schema()


def test_an_import_of_videos_alone_does_not_advise_to_generate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "films").mkdir()
    moving(tmp_path / "films" / "a.mp4", 12)
    assert main(["import", str(tmp_path / "films"), "--out", str(tmp_path / "data")]) == 0
    told = capsys.readouterr().out
    assert "next: workbench open" in told and "workbench generate" not in told
