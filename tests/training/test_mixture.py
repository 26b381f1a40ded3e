"""A mixture: an epoch sees as much of each dataset as asked, nothing of one is taken for another's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.data import tables
from workbench.errors import RecipeError, TrainingError
from workbench.training.examples import Examples
from workbench.training.lengths import measure
from workbench.training.mixture import Part, amounts, mix, read_sources, take
from workbench.training.plan import plan
from workbench.training.rows import Rows, image_key
from workbench.training.source import Source, find_images
from workbench.training.trainer import train

Made = Callable[..., Any]


def talk(name: str, image: str | None = None, hash: str | None = None) -> Conversation:
    shown = (Image(image, hash=hash),) if image else ()
    return Conversation(name, (Message("user", (*shown, "Well?")), Message("assistant", "So.")))


def source(*train: Conversation, val: tuple[Conversation, ...] = (), folder: str = "/a") -> Source:
    held = (Rows(tables.conversations_to_frame(part)) for part in (train, val))
    return Source(*held, lambda image: Path(folder, image.root, image.path))


def quiet(text: str) -> None: ...


# --- how much -----------------------------------------------------------------------------------------------------


def test_repeats_and_weights_give_the_sizes_they_promise() -> None:
    def part(repeat: float = 1.0, weight: float | None = None) -> Part:
        return Part("", source(), repeat, weight)

    assert amounts([part(), part(0.25), part(2)], [100, 40, 10]) == [100, 10, 20]
    counts = amounts([part(), part(weight=0.2), part(weight=0.3)], [100, 7, 5000])
    assert counts == [100, 40, 60] and counts[1] / sum(counts) == 0.2
    assert amounts([part(), part(0.001)], [100, 40]) == [100, 1], "never nothing of what was asked for"


def test_a_part_of_a_repeat_is_chosen_by_the_seed_and_none_twice() -> None:
    chosen, again, other = (take(10, 25, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1))
    counts = Counter(chosen)
    assert len(chosen) == 25 and set(counts.values()) == {2, 3} and len(counts) == 10
    assert chosen == again != other


# --- whose --------------------------------------------------------------------------------------------------------


def test_the_same_ids_and_paths_in_two_datasets_stay_two() -> None:
    one = source(talk("c", "1.png"), val=(talk("v", "2.png"),), folder="/a")
    other = source(talk("c", "1.png"), val=(talk("v", "2.png"),), folder="/b")
    mixed = mix(
        [Part("data/mine", one), Part("data/general", other), Part("old/general.json", other)], seed=0, say=quiet
    )
    assert [held.id for held in mixed.train] == ["c", "general:c", "general-2:c"]
    files = find_images_of(mixed)
    assert files["images/1.png"] == Path("/a/images/1.png")
    assert files["general:images/1.png"] == files["general-2:images/1.png"] == Path("/b/images/1.png")
    datasets = dict(mixed.val.frame.select("id", "dataset").iter_rows())
    assert datasets == {"v": "mine", "general:v": "general", "general-2:v": "general-2"}
    first, second, _ = mixed.train
    assert replace(second, id="c", messages=first.messages) == first, "the rest is as it was"
    assert second.messages[0].content == (Image("1.png", root="general:images"), "Well?")


def find_images_of(mixed: Source) -> dict[str, Path]:
    return {image_key(image): mixed.resolve(image) for held in mixed.train for image in held.images}


@pytest.mark.parametrize("hash", [None, "f00"], ids=["the same file", "the same bytes elsewhere"])
def test_no_image_that_one_validates_on_is_trained_on_through_another(hash: str | None) -> None:
    said: list[str] = []
    one = source(talk("a", "1.png"), val=(talk("v", "2.png", hash),), folder="/a")
    leak = talk("leak", "2.png" if hash is None else "copy.png", hash)
    other = source(talk("b", "3.png"), leak, folder="/a" if hash is None else "/b")
    mixed = mix([Part("one", one), Part("other", other)], seed=0, say=said.append)
    assert [held.id for held in mixed.train] == ["a", "other:b"]
    assert "1 not used: their images validate another dataset" in said[0]
    with pytest.raises(TrainingError, match="dataset 2 of the mixture"):
        mix([Part("one", one), Part("other", source(leak, folder="/a" if hash is None else "/b"))], seed=0, say=quiet)


# --- in a run -----------------------------------------------------------------------------------------------------


def test_a_run_on_a_folder_and_a_llava_file_shows_the_loss_of_each(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = make_dataset(split=True)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    records = []
    for number in range(8):
        PIL.Image.new("RGB", (24, 24), (9 * number, 0, 0)).save(pictures / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nHow red?"}, {"from": "gpt", "value": f"{9 * number}."}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    file = tmp_path / "general.json"
    file.write_text(json.dumps(records))
    entry = {"dataset": str(file), "images": str(pictures), "weight": 0.5}
    overrides = [f"data.mix={json.dumps([entry])}", "data.val_fraction=0.25", "train.max_steps=null", "train.epochs=1"]
    recipe = make_recipe(mine, "train.batch_size=8", *overrides)
    runs = [train(recipe, out=tmp_path / str(number)) for number in (1, 2)]
    rows = runs[0].metrics()
    losses = rows[-1]["val_loss_by_dataset"]
    assert losses.keys() == {"data", "general"} and losses["data"] != losses["general"]
    assert len([row for row in rows if "loss" in row]) == 4, "16 of each"
    assert [row.get("loss") for row in rows] == [row.get("loss") for row in runs[1].metrics()], "the seed decides"
    told = capsys.readouterr().err
    line = "general        16 conversations an epoch (50%), of 6; 2 to validate"
    assert line in told, told
    foreseen = plan(recipe)
    assert line in str(foreseen) and "data, mixed:" in str(foreseen), "a plan once told nothing of it"
    shares = {"name": "general", "where": str(file), "conversations": 16, "of": 6, "validation": 2, "leaking": 0}
    assert foreseen.summary()["mixed"][1] == shares


def test_a_mixture_with_the_same_folder_takes_other_tasks_of_it(
    make_dataset: Made, make_recipe: Made, make_llava: Made
) -> None:
    dataset = make_dataset(split=True)
    recipe = make_recipe(dataset, f"data.mix=[{{dataset: {dataset.path}, repeat: 2, max_conversations: 4}}]")
    source = read_sources(recipe.data, seed=0, say=quiet)
    assert len(source.train) == 16 + 8 and len(source.val) == 6
    keys = {key.partition("/")[0] for key in find_images(source)}
    assert keys == {"images", "data-2:images"}, "seen under two names"
    examples = Examples(source.train, make_llava(recipe))
    entries = measure(examples, name=str(dataset.path)).entries()
    assert [entry.key for entry in entries] == [example.share_key for example in examples], "and under no other's"
    names = source.train.frame["id"].to_list()
    again = [entry for entry in entries if entry.first != entry.number]
    assert len(again) == 4 and all(names[entry.number] == names[entry.first] for entry in again), "the repeats"


# --- what cannot be mixed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mix", "told"),
    [
        ("[{dataset: a, repeat: 2, weight: 0.5}]", "repeat and weight of 'a'; expected one of the two"),
        ("[{dataset: a, weight: 0.5}, {dataset: b, weight: 0.5}]", "weights that add up to 1; expected less than 1"),
        ("[{dataset: a, images: b}]", "images with the dataset folder 'a'"),
        ("[{dataset: a, repeet: 2}]", "did you mean data.mix.0.repeat?"),
        ("[{dataset: a, repeat: 0}]", "greater than 0"),
        ("{dataset: a}", "expected a list"),
    ],
)
def test_mistakes_in_a_mixture_get_one_clear_line(make_recipe: Made, mix: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe("data", f"data.mix={mix}")
    assert told in str(caught.value), str(caught.value)
