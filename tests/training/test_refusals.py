"""Before step 1: every reason not to start, with the sample's name (law 8)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.errors import TrainingError
from workbench.run import Run
from workbench.training.plan import plan
from workbench.training.trainer import train

Made = Callable[..., Any]


@pytest.fixture
def refused(tmp_path: Path, make_recipe: Made) -> Callable[..., str]:
    """`refused(dataset, *overrides)`: the message with which training refuses to start."""

    def made(dataset: Any, *overrides: str) -> str:
        out = tmp_path / "run"
        with pytest.raises(TrainingError) as caught:
            train(make_recipe(dataset, *overrides), out=out, progress=False)
        run = Run.open(out)
        assert run.status == "failed" and run.metrics() == []
        return str(caught.value)

    return made


def test_an_unknown_task_names_the_known_ones(refused: Callable[..., str], make_dataset: Made) -> None:
    message = refused(make_dataset(task="conversation"), "data.tasks=[conversatoin]")
    assert "'conversatoin'" in message and "did you mean conversation?" in message


def test_an_empty_dataset(refused: Callable[..., str], make_dataset: Made) -> None:
    dataset = make_dataset(images=1, each=1)
    dataset.write_conversations([])
    assert "no conversation to train on" in refused(dataset)


def test_conversations_that_are_too_long_are_named_never_cut(refused: Callable[..., str], make_dataset: Made) -> None:
    message = refused(make_dataset(), "train.max_tokens=210")
    assert "c1.1 with " in message and "more than train.max_tokens = 210: " in message
    assert "raise train.max_tokens" in message
    assert "c1.2" not in message, "short enough"


def test_conversations_without_an_answer_are_named(refused: Callable[..., str], make_dataset: Made) -> None:
    dataset = make_dataset()
    question = Conversation("asked-only", (Message("user", (Image("1.png"), "Well?")),))
    dataset.write_conversations([*dataset.conversations(), question])
    message = refused(dataset)
    assert "1 of " in message and "asked-only" in message and "without an answer" in message


def test_missing_images_are_listed_with_conversation_and_file(refused: Callable[..., str], make_dataset: Made) -> None:
    dataset = make_dataset()
    for number in (1, 4):
        (dataset.path / "images" / f"{number}.png").unlink()
    message = refused(dataset)
    assert "2 of " in message and "no such file: 2: c1." in message and "1.png)" in message and "4.png)" in message
    assert "c1." in message and "put the files back" in message


def test_broken_images_are_listed_with_conversation_file_and_reason(
    refused: Callable[..., str], make_dataset: Made
) -> None:
    dataset = make_dataset()
    file = dataset.path / "images" / "2.png"
    file.write_bytes(file.read_bytes()[:60])
    (dataset.path / "images" / "3.png").write_text("not an image")
    message = refused(dataset)
    assert "2 of " in message and "2.png" in message and "3.png" in message
    assert "c2.0 and 2 more" in message and "quarantine" in message


def test_what_a_mixture_cannot_render_is_a_line_for_each_reason(
    refused: Callable[..., str], make_dataset: Made, tmp_path: Path
) -> None:
    turns = [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]] * 40
    turns += [[{"from": "human", "value": "a"}]]
    file = tmp_path / "general.json"
    file.write_text(json.dumps([{"id": f"{n}", "conversations": each} for n, each in enumerate(turns)]))
    message = refused(make_dataset(each=1), "template=plain", f"data.mix=[{{dataset: {file}}}]", "data.val_fraction=0")
    lines = message.splitlines()
    assert "42 of " in lines[0] and len(lines) == 4, "the dataset's own text, and 41 of the mixture"
    assert "no image; expected an image: template 'plain' captions one: 41: " in message
    assert message.count("general:") == 3 and "; ...\n" in message, "of the many three, and the one by itself"
    assert re.search(r"\n  general:\w+, message 0: found a last question without an answer", message)


def test_an_entry_of_a_mixture_without_tasks_is_told_to_name_them(
    refused: Callable[..., str], make_dataset: Made, tmp_path: Path
) -> None:
    other = make_dataset(images=2, each=1, name="other").path
    message = refused(make_dataset(), f"data.mix=[{{dataset: {other}}}]", "data.tasks=[conversation]", "template=plain")
    assert "or write tasks: [conversation] into the entry of data.mix too" in message
    again = f"data.mix=[{{dataset: {other}, tasks: [conversation]}}]"
    assert "data.mix" not in refused(make_dataset(name="third"), again, "data.tasks=[conversation]", "template=plain")


def test_records_of_a_llava_file_that_are_no_conversation_are_named(
    refused: Callable[..., str], make_dataset: Made, tmp_path: Path
) -> None:
    file = tmp_path / "some.json"
    good = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    odd = [{"from": "robot", "value": "a"}]
    file.write_text(json.dumps([{"id": "good", "conversations": good}, {"id": "odd", "conversations": odd}]))
    message = refused(file)
    assert "odd" in message and "robot" in message and "good" not in message
    half = [good[0], {"from": "gpt", "value": "\ud800"}]
    records = [{"id": "good", "conversations": good}, *({"id": f"half{n}", "conversations": half} for n in (1, 2))]
    file.write_text(json.dumps(records))
    message = refused(file)
    assert "2 of 3 conversations" in message and r"not Unicode ('\ud800')" in message
    assert "half1; half2" in message and f"correct them in {file}" in message, "it named an id of ours, and one alone"


def test_what_a_llava_file_is_refused_for_is_told_in_its_own_words(
    refused: Callable[..., str], make_dataset: Made, tmp_path: Path
) -> None:
    """Each once was named by an id of ours, and mended in a dataset and a card.yaml that are not there."""
    make_dataset(images=2)
    records: list[dict[str, Any]] = [
        {"id": f"r{n}", "image": f"data/images/{n % 2}.png", "conversations": _turns("x" * n)} for n in range(1, 5)
    ]
    file = tmp_path / "mine.json"

    def told(**changed: Any) -> str:
        file.write_text(json.dumps([*records, {**records[0], "id": "r7", **changed}]))
        return refused(file, "data.val_fraction=0", "train.max_tokens=300")

    long = told(conversations=_turns("y" * 400))
    assert "1 of 5 conversations that cannot be trained on:\n  r7 with " in long
    assert f"correct them in {file}, or raise train.max_tokens" in long
    missing = told(image="gone.png")
    assert f"r7 ({tmp_path / 'gone.png'}): found no such file" in missing
    assert f"put the files back, or set data.images to the folder that the paths in {file} start from" in missing
    records[1]["conversations"] = records[2]["conversations"] = _turns("")
    empty = told()
    assert "\n  message 1: found an empty assistant message; expected text: 2: r2; r3\n" in empty


def _turns(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]


def test_a_window_shorter_than_a_conversation_is_refused(
    make_dataset: Made, make_recipe: Made, make_llava: Made, tmp_path: Path
) -> None:
    recipe = make_recipe(make_dataset(images=2), "train.max_steps=1", "train.max_tokens=1000")
    llava = make_llava(recipe)
    llava.model.model.language_model.config.sliding_window = 512
    with pytest.raises(TrainingError, match="sliding window of 512.*set train.max_tokens to 512 or less"):
        train(recipe, out=tmp_path / "refused", llava=llava, progress=False)
    shorter = recipe.with_overrides("train.max_tokens=512")
    assert train(shorter, out=tmp_path / "run", llava=llava, progress=False).status == "finished"


def test_a_conversation_that_the_language_model_has_no_places_for_is_refused(
    make_dataset: Made, make_recipe: Made, parts: dict[str, Path], tmp_path: Path
) -> None:
    """It was trained on in silence, and could then not be asked. How many `train.max_tokens` allows is no matter."""
    short = shutil.copytree(parts["llama"], tmp_path / "short")
    told = json.loads((short / "config.json").read_text())
    recipe = make_recipe(make_dataset(images=2), f"model.language={short}", "train.max_steps=1")
    longest = plan(recipe).counts.longest[1]
    assert longest < 400 < recipe.train.max_tokens
    (short / "config.json").write_text(json.dumps(told | {"max_position_embeddings": longest - 1}))
    message = f"found places for {longest - 1} tokens; expected places for .* {longest} tokens.*set train.max_tokens to"
    with pytest.raises(TrainingError, match=message):
        train(recipe, out=tmp_path / "run", progress=False)
    with pytest.raises(TrainingError, match=message):
        plan(recipe)
    (short / "config.json").write_text(json.dumps(told | {"max_position_embeddings": longest}))
    assert plan(recipe).trains and train(recipe, out=tmp_path / "run", progress=False).status == "finished"


def test_a_refused_run_can_be_resumed_once_the_data_is_right(
    refused: Callable[..., str], make_dataset: Made, make_recipe: Made, tmp_path: Path
) -> None:
    dataset = make_dataset(each=1)
    picture = dataset.path / "images" / "1.png"
    held = picture.read_bytes()
    picture.unlink()
    refused(dataset, "train.max_steps=1")
    picture.write_bytes(held)
    recipe = make_recipe(dataset, "train.max_steps=1")
    assert train(recipe, out=tmp_path / "run", resume=True, progress=False).status == "finished"
