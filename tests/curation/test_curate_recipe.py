from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from PIL import Image

from workbench.curation.curate_recipe import CurateRecipe, Filters
from workbench.curation.filters import curate
from workbench.data.dataset import Dataset
from workbench.errors import ModelError, RecipeError
from workbench.recipe import Recipe, recipe_names
from workbench.recipe_yaml import to_yaml

CAPTIONS = {
    "good": ["a small white dog runs along the beach"],
    "shouting": ["!!! *** --- ??? ***"],
    "again": ["buy now " * 20],
    "cyrillic": ["маленькая собака бежит по пляжу"],
    "two": ["!!!", "a second and better caption"],
    "silent": [],
}


@pytest.fixture
def told(tmp_path: Path, helpers: SimpleNamespace) -> Dataset:
    (tmp_path / "images").mkdir()
    for number, name in enumerate(CAPTIONS):
        size = (400, 100) if name == "silent" else (90, 80)
        helpers.draw(number).resize(size).save(tmp_path / "images" / f"{name}.png")
    names = [f"{name}.png" for name in CAPTIONS]
    return helpers.dataset_of(tmp_path, names, captions=pl.Series(list(CAPTIONS.values()), dtype=pl.List(pl.String)))


def recipe(tmp_path: Path, filters: dict[str, object], **more: object) -> CurateRecipe:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml({"kind": "curate", "name": "mine", "filters": filters, **more}))
    return CurateRecipe.load(path)


def removed(dataset: Dataset, made: CurateRecipe) -> dict[str, str]:
    return dict(curate(dataset, made).removed.select("id", "reason").iter_rows())


def test_every_filter_takes_out_what_is_outside_its_range_and_says_so(told: Dataset, tmp_path: Path) -> None:
    assert removed(told, recipe(tmp_path, {"alphanumeric": {"min": 0.5}})) == {
        "shouting": "alphanumeric 0.0, less than 0.5: !!! *** --- ??? ***"
    }, "one good caption is enough, and none is no fault"
    assert list(removed(told, recipe(tmp_path, {"word_repetition": {"max": 0.5, "length": 2}}))) == ["again"]
    assert removed(told, recipe(tmp_path, {"script": ["latin"]})) == {
        "cyrillic": "script Cyrillic: маленькая собака бежит по пляжу"
    }
    assert removed(told, recipe(tmp_path, {"aspect": {"max": 3.0}})) == {"silent": "aspect 4.0, more than 3.0"}
    assert list(removed(told, recipe(tmp_path, {"words": {"min": 8}}))) == ["two"]
    assert list(removed(told, recipe(tmp_path, {"characters": {"max": 5}}))) == ["good"]


def test_shares_are_measured_on_the_text_as_the_recipe_says(told: Dataset, tmp_path: Path) -> None:
    made = {"special_characters": {"max": 0.3}, "characters": {"max": 40}}
    assert "good" not in removed(told, recipe(tmp_path, {"special_characters": {"max": 0.3}}))
    assert "good" in removed(told, recipe(tmp_path, made, text_as="<<<<<<<<< {text}")), "the length is the text's own"


def test_filters_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    names = ["similarity", "broken", "width", "near_duplicates", "exact_duplicates"]
    values = {"similarity": {"min": 0.1, "model": "tiny"}, "width": {"max": 9}}
    made = recipe(tmp_path, {name: values.get(name, True) for name in names})
    assert [step.name for step in made.steps()] == [
        "similarity", "broken", "width", "near duplicates", "exact duplicates",
    ]  # fmt: skip
    assert recipe(tmp_path, {"broken": False, "width": None}).steps() == []


def test_models_judge_pictures_and_captions(tmp_path: Path) -> None:
    from workbench.data.scene_files import Planted, make

    scenes = make(tmp_path / "scenes", count=40, seed=3, planted=Planted(0, 0, 0))
    first = scenes.images["id"][0]
    nonsense = pl.DataFrame({"id": [first], "captions": [["left shape the in is there black of a photo below"]]})
    scenes.update_images(nonsense, operation={"name": "test"})
    judged = {"perplexity": {"max": 60.0, "model": "tiny"}}
    assert list(removed(scenes, recipe(tmp_path, judged))) == [first]
    alike = recipe(tmp_path, {"similarity": {"min": 0.55, "model": "tiny"}})
    assert len(removed(scenes, alike)) <= 4
    kept = scenes.images.filter(status="ok")
    moved = kept.select("id", captions=pl.concat([kept["captions"][15:], kept["captions"][:15]])).head(10)
    scenes.update_images(moved, operation={"name": "test"})
    found = set(removed(scenes, alike))
    assert found <= set(moved["id"]) and len(found) >= 7, "what was right stays, what was moved goes"
    left = scenes.images.filter(status="ok").height
    assert len(removed(scenes, recipe(tmp_path, {"outliers": {"share": 0.1}}))) == int(0.1 * left)
    assert {path.name.split("-")[0] for path in (scenes.path / "measures").iterdir()} == {"perplexity", "clip"}


def test_the_shipped_recipe_has_the_published_thresholds() -> None:
    assert recipe_names("curate") == ["curate-llava-558k"] and "curate-llava-558k" not in recipe_names()
    made = CurateRecipe.load("curate-llava-558k")
    given = made.filters.given
    assert (given["alphanumeric"].min, given["character_repetition"].max) == (0.60, 0.094)
    assert (given["word_repetition"].max, given["word_repetition"].length) == (0.031, 10)
    assert (given["special_characters"].min, given["special_characters"].max) == (0.165, 0.42)
    assert (given["aspect"].min, given["aspect"].max) == (0.333, 3.0)
    assert (given["width"].max, given["height"].max, given["bytes"].max) == (727, 606, 124 * 1024)
    assert given["similarity"].min == 0.203 and "clip" in given["similarity"].model


def test_plain_web_captions_pass_the_shipped_recipe_and_spoilt_ones_do_not(told: Dataset) -> None:
    made = CurateRecipe.load("curate-llava-558k", ["filters.similarity=null"])
    reasons = removed(told, made)
    assert set(reasons) == {"shouting", "again", "silent"}, "silent is four times as wide as high"
    assert reasons["shouting"].startswith("alphanumeric") and reasons["again"].startswith("character repetition")


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (
            {"alphanumerics": {"min": 1}},
            r"alphanumerics: found an unknown key; did you mean filters.alphanumeric\?",
        ),
        ({"aspect": {"maximum": 1, "max": 2}}, "filters.aspect.maximum: found an unknown key"),
        ({"aspect": {}}, "filters: found neither min nor max"),
        ({"aspect": {"min": 3, "max": 1}}, r"filters: found min 3.0 above max 1.0"),
        ({"aspect": 3}, "filters.aspect: found the number 3; expected keys below it"),
        ({"similarity": {"min": 0.2}}, "filters.similarity.model: found nothing"),
        ({"outliers": {"share": 2}}, "filters.outliers.share: found the number 2; expected less than 1"),
        ({"script": []}, "filters.script"),
    ],
)
def test_mistakes_are_one_line_with_the_key(filters: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe(tmp_path, filters)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("mine.yaml")


def test_another_kind_of_recipe_is_sent_where_it_belongs() -> None:
    with pytest.raises(RecipeError, match="found a recipe of another kind; .* use it with workbench train"):
        CurateRecipe.load("tiny-align")
    with pytest.raises(RecipeError, match="found kind: curate; .*; use it with workbench curate"):
        Recipe.load("curate-llava-558k")
    with pytest.raises(RecipeError, match=r"did you mean curate-llava-558k\?"):
        CurateRecipe.load("curate-lava-558k")


def test_a_missing_model_is_told_before_anything_is_done(told: Dataset, tmp_path: Path) -> None:
    before = told.images
    filters = {"alphanumeric": {"min": 0.5}, "matching": {"min": 0.4, "model": str(tmp_path / "nowhere")}}
    with pytest.raises(ModelError, match="nowhere: found no such folder"):
        curate(told, recipe(tmp_path, filters))
    assert told.images.equals(before) and not (told.path / "measures").exists()


def test_every_filter_has_a_step(tmp_path: Path) -> None:
    values = {"script": ["Latin"], "outliers": {"share": 0.1}}
    for name in set(Filters.model_fields) - {"matching"}:  # the package has no model for it
        options = [values.get(name), True, {"min": 0}, {"min": 0, "model": "tiny"}]
        for option in options:
            try:
                made = recipe(tmp_path, {name: option}) if option is not None else None
            except RecipeError:
                continue
            if made is not None:
                assert [step.name for step in made.steps()] == [name.replace("_", " ")]
                break
        else:
            raise AssertionError(name)


def test_the_funnel_is_shown_as_figure_page_and_saved_views(told: Dataset, tmp_path: Path, fiftyone: object) -> None:
    from workbench.curation.table import ids_of, to_fiftyone

    view = to_fiftyone(told)
    (told.path / "images" / "silent.png").unlink()
    made = recipe(tmp_path, {"broken": True, "alphanumeric": {"min": 0.5}, "script": ["Latin"]})
    funnel = curate(told, made, view=view)
    assert funnel.counts == [6, 5, 4, 3] and str(funnel).endswith("6 > 5 > 4 > 3")
    page = tmp_path / "funnel.html"
    funnel.save(page)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 2 and "(cannot be shown)" in text, "the lost file has no picture"
    assert "<svg" in text and "alphanumeric 0.0, less than 0.5: !!!" in text
    assert "<svg" in funnel._repr_html_()
    assert len(funnel.figure().axes[0].patches) == 2 * 4
    assert ids_of(view.load_saved_view("removed: alphanumeric")) == ["shouting"]
    assert ids_of(view.load_saved_view("removed: script")) == ["cyrillic"]


def test_a_caption_cannot_smuggle_markup_into_the_page(told: Dataset, tmp_path: Path) -> None:
    bad = pl.DataFrame({"id": ["good"], "captions": [["<script>!!!!!!!!!!!!!!!!"]]})
    told.update_images(bad, operation={"name": "test"})
    text = curate(told, recipe(tmp_path, {"alphanumeric": {"min": 0.5}})).to_html()
    assert "<script" not in text and "&lt;script&gt;" in text


def test_what_was_removed_by_size_of_file(told: Dataset, tmp_path: Path) -> None:
    Image.new("RGB", (90, 80)).save(told.path / "images" / "good.png")
    sizes = {path.stem: path.stat().st_size for path in (told.path / "images").iterdir()}
    smallest = min(sizes, key=lambda name: sizes[name])
    assert list(removed(told, recipe(tmp_path, {"bytes": {"min": sizes[smallest] + 1}}))) == [smallest]
