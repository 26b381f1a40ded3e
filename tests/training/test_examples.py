"""Which conversations train and which validate, and how one becomes token ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.conversation import Conversation, Image, Message
from workbench.data import tables
from workbench.errors import TrainingError
from workbench.run import Run
from workbench.serving.examples import validation_examples
from workbench.training.describe import describe
from workbench.training.examples import Examples, to_example
from workbench.training.lengths import measure
from workbench.training.packing import Plan
from workbench.training.rows import Rows
from workbench.training.source import hold_out, read_source

Made = Callable[..., Any]


def rows(conversations: list[Conversation]) -> Rows:
    return Rows(tables.conversations_to_frame(conversations))


def about(name: str, image: Image | None) -> Conversation:
    return Conversation(name, (Message("user", (image, "?") if image else ("?",)), Message("assistant", ("!",))))


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=60), st.floats(0, 0.5), st.integers(0, 5))
def test_validation_is_taken_by_whole_images(images: list[int | None], fraction: float, seed: int) -> None:
    all_of_them = [about(str(n), None if i is None else Image(f"{i}.png")) for n, i in enumerate(images)]
    train, val = (list(part) for part in hold_out(rows(all_of_them), fraction, np.random.default_rng(seed)))
    assert sorted(c.id for c in (*train, *val)) == sorted(c.id for c in all_of_them)
    assert not {c.images for c in train if c.images} & {c.images for c in val}, "no image on both sides"
    assert train
    assert bool(val) == (fraction > 0 and len({c.images or c.id for c in all_of_them}) > 1)
    again = hold_out(rows(all_of_them), fraction, np.random.default_rng(seed))
    assert [list(part) for part in again] == [train, val]


def test_copies_of_one_image_stay_together() -> None:
    pair = [about("a", Image("a.png", hash="same")), about("b", Image("b.png", hash="same"))]
    train, val = hold_out(rows([*pair, about("c", Image("c.png", hash="other"))]), 0.3, np.random.default_rng(0))
    assert {"a", "b"} in ({c.id for c in train}, {c.id for c in val})


def test_images_shown_together_stay_together() -> None:
    """Groups went by the first image of a conversation: the second one of (a, b) could validate (b, c)."""

    def shows(name: str, *images: int) -> Conversation:
        pictures = [Image(f"{image}.png") for image in images]
        return Conversation(name, (Message("user", (*pictures, "?")), Message("assistant", ("!",))))

    chains = [
        shows(f"{link}-{chain}", 10 * chain + link, 10 * chain + link + 1) for link in range(3) for chain in range(9)
    ]
    alone = [shows("text"), *(shows(f"alone-{number}", 100 + number) for number in range(9))]
    for seed in range(5):
        train, val = hold_out(rows([*chains, *alone]), 0.4, np.random.default_rng(seed))
        assert len(val) > 5 and not set(train.keys["key"]) & set(val.keys["key"])
    joined = [shows(str(number), number, number + 1) for number in range(5)]
    assert [len(part) for part in hold_out(rows(joined), 0.4, np.random.default_rng(0))] == [3, 2], "by the first"
    legend = [shows(str(number), number, 1000) for number in range(90)]
    for seed in range(20):
        train, val = hold_out(rows([*legend, *alone]), 0.05, np.random.default_rng(seed))
        assert len(train) >= 90 and 5 <= len(val) <= 10, "what one picture joins is not held out as a whole"
        train, val = hold_out(rows([*legend[:10], *alone]), 0.4, np.random.default_rng(seed))
        assert 8 <= len(val) <= 16, "nor beside others"


def test_splits_of_the_data_go_before_a_fraction(make_dataset: Made, make_recipe: Made) -> None:
    dataset = make_dataset(split=True)
    source = read_source(make_recipe(dataset, "data.val_fraction=0.5").data, seed=0)
    assert {c.id.split(".")[0] for c in source.val} == {"c5"}
    assert len(source.train) == 16


def test_a_part_of_the_conversations_is_chosen_by_the_seed(make_dataset: Made, make_recipe: Made) -> None:
    dataset = make_dataset()
    spec = make_recipe(dataset, "data.max_conversations=7", "data.val_fraction=0").data
    first, again, other = (list(read_source(spec, seed=seed, dataset=dataset).train) for seed in (1, 1, 2))
    assert len(first) == 7 and first == again and first != other


def test_conversations_left_out_for_their_status_are_counted(make_dataset: Made, make_recipe: Made) -> None:
    """Three about a removed image and one that was rejected were once left out in silence."""
    dataset = make_dataset()
    assert read_source(make_recipe(dataset).data, seed=0).left_out == 0
    dataset.edit({"table": "images", "id": "i1", "set": {"status": "quarantined"}})
    dataset.edit({"table": "conversations", "id": "c2.0", "set": {"status": "removed"}})
    source = read_source(make_recipe(dataset, "data.tasks=[conversation]").data, seed=0)
    assert source.left_out == 4 and len(source.train) + len(source.val) == 15
    for row in dataset.conversation_rows["id"]:
        dataset.edit({"table": "conversations", "id": row, "set": {"status": "removed"}})
    with pytest.raises(TrainingError, match="no conversation to train on, 19 that are not ok"):
        read_source(make_recipe(dataset).data, seed=0)


def test_what_is_left_out_is_said(make_recipe: Made, make_llava: Made) -> None:
    held = rows([about("a", None)])
    lengths = measure(Examples(held, make_llava(make_recipe())), name="one")
    spec = make_recipe().train
    order = Plan(lengths.entries(), batch_size=2, share=True, max_share=2, max_tokens=99, seed=0)
    told = [str(describe(lengths, lengths, spec, order, shown=held, left_out=count)) for count in (1234, 0)]
    assert "\n1,234 conversations left out: " in told[0] and "left out" not in told[1]


def test_an_example_is_what_the_renderer_writes(make_recipe: Made, make_llava: Made) -> None:
    llava = make_llava(make_recipe())
    conversation = about("a", Image("a.png"))
    rendered = llava.renderer.render(conversation)
    ids, labels = llava.renderer.expand(rendered, [llava.image_tokens], llava.image_token_id)
    example = to_example(conversation, llava)
    whole, places = example.expand()
    assert np.where(whole == -200, llava.image_token_id, whole).tolist() == ids
    assert [number for number, label in enumerate(labels) if label != -100] == places.tolist()
    assert ids[example.prefix - 1] == llava.image_token_id and example.images == ("images/a.png",)


def test_a_validation_picture_that_is_gone_leaves_a_demo_the_others(
    make_dataset: Made, make_recipe: Made, tmp_path: Path
) -> None:
    recipe = make_recipe(make_dataset(), "data.val_fraction=0.5")
    run = Run.create(tmp_path / "run", recipe, kind="train")
    shown = validation_examples(run.path, 6)
    assert len(shown) > 1
    shown[0][1].unlink()
    assert validation_examples(run.path, 6) == shown[1:]
