"""Every shipped recipe loads; every mistake in one gets a single clear line with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from workbench import resources
from workbench.errors import RecipeError
from workbench.recipe import DataSpec, LoraSpec, ModelSpec, Recipe, TrainSpec, find_recipe, recipe_names
from workbench.recipe_yaml import on_dataset, read_yaml

FILES = sorted(resources.recipes_folder().glob("*.yaml"))
BASE: dict[str, Any] = {
    "name": "base",
    "model": {"vision": "tiny", "language": "tiny"},
    "data": {"dataset": "data/mine"},
    "template": "v1",
    "train": {"stage": "finetune", "language": "lora", "lr": 1e-3},
}


def base(*overrides: str) -> Recipe:
    return Recipe.from_dict(BASE).with_overrides(*overrides)


def problem(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        base(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the shipped files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "the header says what the recipe does and how to run it"
    if "kind" in read_yaml(
        path
    ):  # how the tiny starting parts were made, or what `curate` takes out: no training stage
        return
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert f"workbench train {path.stem} " in text and "--set" in text
    assert Recipe.load(path.stem) == recipe


def test_the_shipped_names_are_the_recipes_that_train() -> None:
    names = {path.stem for path in FILES if "kind" not in read_yaml(path)}
    assert set(recipe_names()) == names
    assert {"tiny-align", "tiny-finetune-qlora", "llava-1.5-7b-align", "llava-1.5-7b-qlora"} <= names


def test_the_7b_recipes_carry_llavas_own_numbers() -> None:
    align, lora = Recipe.load("llava-1.5-7b-align"), Recipe.load("llava-1.5-7b-lora")
    assert (align.train.lr, align.train.batch_size, align.template, align.image_mode) == (1e-3, 256, "plain", "crop")
    assert (lora.train.lora.r, lora.train.lora.alpha, lora.train.lr, lora.train.projector_lr) == (128, 256, 2e-4, 2e-5)
    assert (lora.train.batch_size, lora.template, lora.image_mode, lora.train.warmup) == (128, "v1", "pad", 0.03)


@pytest.mark.parametrize("section", [Recipe, ModelSpec, DataSpec, LoraSpec, TrainSpec])
def test_every_field_says_what_it_does(section: type[BaseModel]) -> None:
    sections = {"model", "data", "train", "lora"}
    bare = [name for name, field in section.model_fields.items() if name not in sections and not field.description]
    assert bare == []


# --- there and back -------------------------------------------------------------------------------------------

changes = st.fixed_dictionaries(
    {},
    optional={
        "train.lr": st.floats(1e-9, 10),
        "train.projector_lr": st.none() | st.floats(1e-9, 10),
        "train.clip": st.none() | st.floats(1e-3, 1e3),
        "train.betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)),
        "train.epochs": st.floats(1e-3, 1e6),
        "train.batch_size": st.integers(1, 10**6),
        "train.share": st.booleans(),
        "train.lora.targets": st.lists(st.text("abcxyz_", min_size=1), min_size=1, max_size=3),
        "data.tasks": st.none() | st.lists(st.sampled_from(["caption", "null", "1e3", "yes", "detail: x"])),
        "model.load": st.sampled_from(["fp32", "bf16", "4bit"]),
        "model.device": st.sampled_from(["auto", "cpu", "cuda:1"]),
        "name": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1),
    },
)


@settings(max_examples=25)
@given(changes)
def test_a_written_recipe_reads_back_equal(tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = base(*(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in change.items()))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.load(file)
    assert again == recipe and again.hash() == recipe.hash()
    for key, value in change.items():
        held: Any = again
        for name in key.split("."):
            held = getattr(held, name)
        assert held == value


def test_the_hash_follows_every_field_and_no_order() -> None:
    assert base().hash() == Recipe.from_dict(dict(reversed(BASE.items()))).hash()
    assert len({base().hash(), base("train.seed=1").hash(), base("train.lora.r=8").hash()}) == 3


def test_a_recipe_cannot_be_changed_under_a_run() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        base().train.lr = 1.0  # type: ignore[misc]


# --- numbers and overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "0.0002", "2.0e-4", "+2e-4", ".2e-3", "2.e-4"])
def test_every_spelling_of_a_number_is_a_number(text: str, tmp_path: Path) -> None:
    assert base(f"train.lr={text}").train.lr == 0.0002
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**BASE, "train": None}).replace("train: null", "") + f"train: {{stage: finetune, "
                    f"language: lora, lr: {text}}}")  # fmt: skip
    assert Recipe.load(file).train.lr == 0.0002


@pytest.mark.parametrize("text", ["e4", "1e", "2e-4x", "v1e5"])
def test_what_only_looks_like_a_number_stays_text(text: str) -> None:
    assert base(f"name={text}").name == text


def test_overrides_read_lists_null_and_text_with_equals_signs() -> None:
    recipe = base("data.tasks=[caption, detail]", "train.clip=null", "train.lora.r=8", "name=a=b")
    assert recipe.data.tasks == ["caption", "detail"] and recipe.train.clip is None
    assert recipe.train.lora.r == 8 and recipe.name == "a=b"
    assert recipe.train.lora.alpha == 128


def test_a_checkpoint_is_one_changed_line() -> None:
    recipe = base("model.checkpoint=llava-hf/llava-1.5-7b-hf")
    assert (recipe.model.checkpoint, recipe.model.vision) == ("llava-hf/llava-1.5-7b-hf", None)
    back = recipe.with_overrides("model.vision=tiny", "model.language=tiny")
    assert back == base()


def test_a_checkpoint_brings_its_own_projector_unless_another_is_asked_for() -> None:
    """The file's `projector_from: runs/align` once stayed, and did not fit."""
    change = "model.checkpoint=llava-hf/llava-1.5-7b-hf"
    assert Recipe.load("tiny-finetune-qlora", [change]).model.projector_from is None
    assert Recipe.load("tiny-finetune-qlora", ["model.projector_from=mine", change]).model.projector_from == "mine"


@pytest.mark.parametrize("place", ["2024", "null", "a: b", "bilder/für mich 😀", "[x]"])
def test_a_dataset_may_have_any_name(place: str) -> None:
    assert base(on_dataset(place)).data.dataset == base(on_dataset(Path(place))).data.dataset == place


OF_PARTS = [("projector", "linear"), ("vision_layer", -1), ("vision_select", "full")]


@pytest.mark.parametrize(("key", "value"), OF_PARTS)
def test_how_parts_are_joined_is_refused_beside_a_checkpoint(key: str, value: str | int) -> None:
    """It was ignored, and the run's recipe.yaml recorded what was not so."""
    expected = f"base, model.{key}: found {key}: {value} with a checkpoint; expected it only with vision and language"
    checkpoint = {"checkpoint": "a/b"}
    with pytest.raises(RecipeError, match=f"{expected}; leave it out"):
        Recipe.from_dict({**BASE, "model": {**checkpoint, key: value}}, where="base")
    own = Recipe.from_dict({**BASE, "model": checkpoint})
    with pytest.raises(RecipeError, match=expected):
        own.with_overrides(f"model.{key}={value}")
    with pytest.raises(RecipeError, match=expected):
        base(f"model.{key}={value}", "model.checkpoint=a/b")
    joined = base(f"model.{key}={value}")
    assert joined.with_overrides("model.checkpoint=a/b") == own, "it goes with the parts"


@pytest.mark.parametrize(("key", "value"), OF_PARTS)
def test_what_a_run_of_a_checkpoint_wrote_is_read_again(key: str, value: str | int) -> None:
    own = Recipe.from_dict({**BASE, "model": {"checkpoint": "a/b"}})
    written = own.model_dump(mode="json")
    assert Recipe.from_dict(written) == own and own.with_overrides("train.lr=1") == own.with_overrides("train.lr=1.0")
    written["model"][key] = value  # as runs recorded that did not heed it
    assert getattr(Recipe.from_dict(written).model, key) == value


@pytest.mark.parametrize("name", recipe_names())
def test_a_dataset_folder_takes_the_place_of_a_llava_file_with_its_images(name: str) -> None:
    """The README's own command was refused: the file's `images` stayed, and was told as a mistake."""
    assert Recipe.load(name, ["data.dataset=data/mine"]).data.images is None
    other = Recipe.load(name, ["data.dataset=mine.json"]).data
    assert (other.dataset, other.images) == ("mine.json", Recipe.load(name).data.images), "another file keeps them"
    assert Recipe.load(name, ["data.dataset=mine.jsonl", "data.images=photos"]).data.images == "photos"
    with pytest.raises(RecipeError, match="with the dataset folder 'data/mine'; .*; leave it out: --set data.images=n"):
        Recipe.load(name, ["data.dataset=data/mine", "data.images=photos"])


@pytest.mark.parametrize("text", ["train.lr", "=3", "train..lr=3"])
def test_an_override_without_key_and_value_is_refused(text: str) -> None:
    assert "expected for example train.lr=2e-4" in problem(text)


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate=1", "override train.learning_rate: found an unknown key"),
        ("train.epoch=1", "did you mean train.epochs?"),
        ("train.lora.rank=8", "override train.lora.rank: found an unknown key"),
        ("train.lora.dropuot=0.1", "did you mean train.lora.dropout?"),
        ("batch_size=4", "override batch_size: found an unknown key; did you mean train.batch_size?"),
        ("train.lr=fast", "found text 'fast'; expected a number"),
        ("train.lr=0", "found the number 0; expected greater than 0"),
        ("train.batch_size=2.5", "found the number 2.5; expected a whole number"),
        ("train.batch_size=true", "found True; expected a whole number"),
        ("train.share=1", "found the number 1; expected true or false"),
        ("train.share=maybe", "found text 'maybe'; expected true or false"),
        ("train.stage=align2", "found text 'align2'; expected 'align' or 'finetune'"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.betas=0.9", "found the number 0.9; expected"),
        ("train.lora.targets=q_proj", "found text 'q_proj'; expected a list"),
        ("train.warmup=3", "expected less than 1"),
        ("data.val_fraction=0.9", "expected less than or equal to 0.5"),
        ("model.device=gpu", "found text 'gpu'; expected auto, cpu, cuda, cuda:1, mps or xpu"),
        ("train.deepspeed=nofile.json", "nofile.json: found no such file; expected a readable JSON file"),
        ("trian.lr=1", "override trian.lr: found an unknown key 'trian'; did you mean train?"),
        (
            "data.mix=[{dataset: a, imges: b}]",
            "override data.mix: found an unknown key 'data.mix.0.imges'; did you mean",
        ),
        ("name.x=1", "override name.x: found keys {'x': 1}; expected text"),
        ("train=4", "override train: found the number 4; expected keys below it"),
        ("model.load=4", "expected 'fp32', 'bf16', 'fp16', '8bit' or '4bit'"),
        ("name=3", "found the number 3; expected text"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    assert message in problem(override)


FLOATS = [
    f"{prefix}{key}"
    for prefix, section in (("data.", DataSpec), ("train.", TrainSpec), ("train.lora.", LoraSpec))
    for key, field in section.model_fields.items()
    if "float" in str(field.annotation) and key != "betas"
]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize("key", FLOATS)
def test_a_number_is_a_finite_one(key: str, value: str) -> None:
    """`train.epochs=.inf` was an OverflowError, `train.lr=.inf` a run that died at its first step."""
    assert (
        problem(f"{key}={value}")
        == f"override {key}: found the number {float(value.replace('.', ''))}; expected a finite number"
    )


@pytest.mark.parametrize(
    "override",
    ["train.betas=[0.9, .nan]", "data.mix=[{dataset: a, repeat: .inf}]", "data.mix=[{dataset: a, weight: .nan}]"],
)
def test_a_number_in_a_list_is_a_finite_one(override: str) -> None:
    assert "expected a finite number" in problem(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stage=align"], "base, train: found stage: align with language: lora; expected the projector alone"),
        (["train.stage=align", "train.language=frozen", "train.projector=frozen"], "align with projector: frozen"),
        (["train.stage=align", "train.language=frozen", "train.vision=full"], "align with vision: full"),
        (["train.language=frozen", "train.projector=frozen"], "found every part frozen"),
        (["model.load=4bit", "train.language=full"], "base: found model.load: 4bit with train.language: full"),
        (["model.load=8bit", "train.language=full"], "use train.language: lora, or model.load: bf16"),
        (["train.vision_lr=1e-5"], "train.vision_lr: found a learning rate with vision: frozen"),
        (["train.projector_lr=1e-5", "train.projector=frozen"], "a learning rate with projector: frozen"),
        (
            ["model.checkpoint=a/b", "model.vision=tiny"],
            "model: found checkpoint and vision; expected a checkpoint, or",
        ),
        (["model.vision=null"], "model: found language; expected a checkpoint, or vision and language"),
        (["model.vision=null", "model.language=null"], "model: found neither"),
        (["data.images=pictures"], "data.images: found images with the dataset folder 'data/mine'"),
    ],
)
def test_two_fields_that_exclude_each_other_are_named(overrides: list[str], message: str) -> None:
    assert message in problem(*overrides)


def test_several_mistakes_name_the_first_in_full_and_the_others_by_key() -> None:
    text = problem("train.lr=fast", "train.epoch=1", "name=3")
    assert "expected text" in text and "also wrong: train.lr, train.epoch" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "bad.yaml, line 1: found broken YAML: expected the node content"),
        ("name: a\nname: b", "bad.yaml, line 1: found broken YAML: the key 'name' twice"),
        ("- a\n- b", "bad.yaml: found list at the top; expected keys such as model: and train:"),
        ("", "bad.yaml: found NoneType at the top"),
        ("name: \x00", "bad.yaml"),
        (yaml.safe_dump({**BASE, "tempalte": "v1"}), "bad.yaml, tempalte: found an unknown key; did you mean template"),
        (yaml.safe_dump({**BASE, "data": {}}), "bad.yaml, data.dataset: found nothing; expected a value"),
        (yaml.safe_dump({**BASE, "model": None}), "bad.yaml, model: found None; expected keys below it"),
    ],
)
def test_a_bad_file_is_named_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match="bad.yaml: .*readable YAML"):
        Recipe.load(tmp_path / "bad.yaml")


def test_a_name_that_is_no_recipe_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match="tiny-aling: found no such file or recipe.*did you mean tiny-align?"):
        find_recipe("tiny-aling")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").mkdir()
    with pytest.raises(RecipeError, match="run.yaml: found a folder; expected the file of a recipe$"):
        find_recipe(tmp_path / "run.yaml")
    (tmp_path / "run.yaml" / "recipe.yaml").write_text("")
    with pytest.raises(RecipeError, match="did you mean .*run.yaml/recipe.yaml?"):
        find_recipe(tmp_path / "run.yaml")


def test_a_path_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny-align").write_text(yaml.safe_dump(BASE))
    assert Recipe.load("tiny-align").name == "base"
    assert Recipe.load("tiny-align.yaml").name == "tiny-align"


def test_one_image_has_room_for_the_longest_conversation_unless_told_otherwise() -> None:
    fields = Recipe.load("tiny-align").model_dump(mode="json")["train"]
    fields.pop("pack_tokens")

    def sizes(**given: int) -> tuple[int, int]:
        spec = TrainSpec(**fields | given)
        again = TrainSpec(**spec.model_dump(mode="json"))  # as a run folder holds it
        assert (again.pack_size, again.tree_size) == (spec.pack_size, spec.tree_size)
        return spec.pack_size, spec.tree_size

    assert sizes(max_tokens=4096) == (2048, 4096)
    assert sizes(max_tokens=512) == (2048, 2048)
    assert sizes(max_tokens=4096, pack_tokens=1024) == (1024, 1024)
