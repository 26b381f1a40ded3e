"""The length index: right, kept, and measured anew exactly where something changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.conversation import Conversation
from workbench.errors import TrainingError
from workbench.model.renderer import Rendered, Renderer
from workbench.resources import state_folder
from workbench.training.examples import Examples, to_example
from workbench.training.lengths import Lengths, measure
from workbench.training.plan import plan
from workbench.training.source import read_source

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class Counting:
    """A model whose renderer writes down what it is asked for."""

    def __init__(self, llava: Any) -> None:
        self.inner, self.tiling, self.asked = llava.renderer, llava.tiling, list[str]()

    @property
    def renderer(self) -> Any:
        return self

    def fingerprint(self) -> str:
        return str(self.inner.fingerprint())

    def render(self, conversation: Conversation) -> Rendered:
        self.asked.append(conversation.id)
        rendered: Rendered = self.inner.render(conversation)
        return rendered


@pytest.fixture
def look(make_recipe: Made, make_llava: Made) -> Callable[..., tuple[Lengths, list[str]]]:
    """`look(dataset, *overrides)`: the lengths of what trains, and the ids that had to be rendered for them."""

    def made(dataset: Any, *overrides: str) -> tuple[Lengths, list[str]]:
        recipe = make_recipe(dataset, "data.val_fraction=0", *overrides)
        reader: Any = Counting(make_llava(recipe))
        source = read_source(recipe.data, seed=0)
        lengths = measure(Examples(source.train, reader), name=str(dataset.path))
        for entry, conversation in zip(lengths.entries(), source.train, strict=True):
            example = to_example(conversation, reader)
            reader.asked.pop()
            for name in ("tokens", "prefix", "supervised", "shared_images"):
                assert getattr(entry, name) == getattr(example, name)
            assert (entry.key, entry.images) == (example.share_key, len(example.images))
        return lengths, reader.asked

    return made


def test_a_second_look_renders_nothing_and_a_change_only_itself(look: Made, make_dataset: Made) -> None:
    dataset = make_dataset()
    first, rendered = look(dataset)
    assert len(rendered) == 19 == len(first)
    again, rendered = look(dataset)
    assert rendered == [] and again.frame.equals(first.frame)
    longer = [turn("user", "What is 1+1?"), turn("assistant", "Two, I think.")]
    dataset.edit({"table": "conversations", "id": "text", "set": {"messages": longer}})
    changed, rendered = look(dataset)
    assert rendered == ["text"]
    assert sum(changed.frame["tokens"]) > sum(first.frame["tokens"])


def test_another_way_to_render_is_another_index(look: Made, make_dataset: Made) -> None:
    dataset = make_dataset(images=2)
    plain, _ = look(dataset)
    other, rendered = look(dataset, "template=tiny")
    assert len(rendered) == 7 and not other.frame.equals(plain.frame)
    assert look(dataset)[1] == []


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"PAR1"), lambda file: file.write_bytes(b"")])
def test_a_damaged_index_is_made_again(look: Made, make_dataset: Made, spoil: Callable[[Path], Any]) -> None:
    dataset = make_dataset(images=2)
    first, _ = look(dataset)
    for file in (state_folder() / "lengths").iterdir():
        spoil(file)
    again, rendered = look(dataset)
    assert len(rendered) == 7 and again.frame.equals(first.frame)


def test_conversations_that_cannot_be_rendered_are_all_named_and_the_others_kept(
    look: Made, make_dataset: Made
) -> None:
    dataset = make_dataset(images=2)
    bad = [turn("user", "Say </s>"), turn("assistant", "No.")]
    for name in ("c0.1", "text"):
        dataset.edit({"table": "conversations", "id": name, "set": {"messages": bad}})
    with pytest.raises(TrainingError, match="2 of 7 conversations") as caught:
        look(dataset)
    assert "c0.1, message 0" in str(caught.value) and "text, message 0" in str(caught.value)
    good = [turn("user", "Say it"), turn("assistant", "No.")]
    for name in ("c0.1", "text"):
        dataset.edit({"table": "conversations", "id": name, "set": {"messages": good}})
    assert look(dataset)[1] == ["c0.1", "text"]


def test_a_second_plan_renders_neither_what_trains_nor_the_few_of_validation(
    make_recipe: Made, make_dataset: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    render = Renderer.render

    def noted(self: Renderer, conversation: Conversation) -> Rendered:
        asked.append(conversation.id)
        return render(self, conversation)

    monkeypatch.setattr(Renderer, "render", noted)
    recipe = make_recipe(make_dataset(), "data.val_fraction=0.1")
    plan(recipe)
    assert len(set(asked)) == 19
    asked.clear()
    plan(recipe)
    assert asked == []
