"""The token strip: what each token says, what the model made of it, and what stays without a kernel."""

from __future__ import annotations

import math
from pathlib import Path

import PIL.Image
import pytest
import torch

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation, Image, Message
from workbench.errors import ModelError
from workbench.inference.engine import Engine
from workbench.model.llava import Llava
from workbench.model.pieces import pieces
from workbench.model.renderer import Renderer
from workbench.model.tokenizers import load_tokenizer
from workbench.resources import tiny_folder
from workbench.widgets.tokens import tokens


@pytest.fixture
def asked(tmp_path: Path) -> Conversation:
    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    question = Message("user", (Image(str(tmp_path / "red.png")), "What <b>color</b>?\nSay."))
    return Conversation("asked", (question, Message("assistant", "It is red: «naïve» 日本.")))


@pytest.mark.parametrize("template", ["tiny", "v1", "plain"])
def test_the_texts_joined_are_what_the_ids_say(asked: Conversation, template: str) -> None:
    renderer = Renderer(load_tokenizer(tiny_folder() / "language"), template)
    rendered = renderer.render(asked)
    made = pieces(renderer, rendered)
    assert [piece.id for piece in made] == list(rendered.ids)
    assert sum(piece.trained for piece in made) == rendered.trained
    (image,) = [number for number, piece in enumerate(made) if piece.is_image]
    for part in (slice(0, image), slice(image + 1, None)):
        whole = renderer.tokenizer.decode(list(rendered.ids[part]), clean_up_tokenization_spaces=False)
        assert "".join(piece.text for piece in made[part]) == whole
    assert "«naïve» 日本." in "".join(piece.text for piece in made), "characters of several tokens are whole"


def test_losses_are_those_of_the_model_and_their_mean_is_its_loss(llava: Llava, asked: Conversation) -> None:
    rendered = llava.renderer.render(asked)
    engine = Engine(llava)
    pixels = llava.image_mode.pixels(engine.open_image(asked.images[0]))
    ids, labels = llava.renderer.expand(rendered, [llava.image_tokens], llava.image_token_id)
    with torch.no_grad():
        loss = llava.model(
            input_ids=torch.tensor([ids]), pixel_values=pixels[None], labels=torch.tensor([labels])
        ).loss  # transformers' own
    view = tokens(asked, engine)
    assert view.about["loss"] == pytest.approx(loss.item(), rel=1e-4)
    (image,) = [one for one in view.tokens if one["id"] < 0]
    assert image["count"] == llava.image_tokens and image["image"].startswith("data:image/jpeg")
    assert view.about["count"] == len(ids)
    behind = view.tokens[view.tokens.index(image) + 1]
    assert behind["place"] == image["place"] + llava.image_tokens
    trained = [one for one in view.tokens if one["trained"]]
    assert all(one["probability"] == pytest.approx(math.exp(-one["loss"])) for one in trained)
    assert all(one["chance"] >= one["probability"] for one in trained)


def test_without_a_model_ids_and_labels_are_told_also_of_an_open_question(asked: Conversation) -> None:
    view = tokens(asked)
    assert view.about["loss"] is None and view.about["template"] == "tiny"
    assert not any("loss" in one for one in view.tokens)
    open_question = tokens(asked.prompt, template="v1")
    assert open_question.about["trained"] == 0
    gone = tokens(Conversation("gone", (Message("user", (Image("nowhere.png"), "?")), Message("assistant", "x"))))
    assert [one["image"] for one in gone.tokens if one["id"] < 0] == [None]


def test_a_model_whose_tokens_are_not_known_says_what_to_do(asked: Conversation) -> None:
    with pytest.raises(ModelError, match="template= and tokenizer="):
        tokens(asked, ScriptedModel(["x"]))


def test_the_bundle_works_without_a_kernel(llava: Llava, asked: Conversation) -> None:
    view = tokens(asked, llava)
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "<b>color" not in data["text/html"] and "&lt;" in data["text/html"] and "loss" in data["text/html"]
    assert data["text/plain"].startswith("tokens of asked: ")
