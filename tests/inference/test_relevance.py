"""Maps of what a token drew on: against transformers' own attention, by occlusion that is known, and by causality."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
import torch

from workbench.conversation import Conversation, Image, Message
from workbench.errors import ModelError
from workbench.inference.attachments import open_file
from workbench.inference.relevance import Relevance, _eager
from workbench.inference.whole_pass import Layout
from workbench.model.llava import Llava, build
from workbench.recipe import ModelSpec


@pytest.fixture(scope="module")
def llava() -> Llava:
    return build(ModelSpec(vision="tiny", language="tiny", load="fp32"), template="v1", image_mode="square")


@pytest.fixture
def asked(tmp_path: Path) -> Conversation:
    picture = PIL.Image.new("RGB", (96, 96), "grey")
    picture.paste("red", (8, 8, 40, 40))
    picture.save(tmp_path / "red.png")
    question = Message("user", (Image(str(tmp_path / "red.png")), "What color is the square?"))
    return Conversation("asked", (question, Message("assistant", "red")))


def test_every_map_is_a_share_of_all_patches(llava: Llava, asked: Conversation) -> None:
    looked = Relevance(llava, asked, open_file)
    before = llava.model.get_decoder().config._attn_implementation
    for method in ("relevance", "attention", "occlusion"):
        made = looked.map(0, method)
        assert made.shape == (1, 8, 8) and (made >= 0).all()
        assert made.sum().item() == pytest.approx(1, abs=1e-4)
    assert llava.model.get_decoder().config._attn_implementation == before
    assert all(weight.grad is None for weight in llava.model.parameters())


def test_attention_is_what_transformers_says(llava: Llava, asked: Conversation) -> None:
    looked = Relevance(llava, asked, open_file)
    pixels = llava.image_mode.pixels(open_file(asked.images[0]))[None]
    with torch.no_grad(), _eager(llava):
        out = llava.model(input_ids=looked.layout.ids, pixel_values=pixels, output_attentions=True)
    place = looked.layout.places[looked.tokens[0]]
    slots = looked.layout.ids[0] == llava.image_token_id
    mean = torch.stack([layer[0].mean(0) for layer in out.attentions]).mean(0)[place - 1][slots].reshape(1, 8, 8)
    torch.testing.assert_close(looked.map(0, "attention", relative=False), mean / mean.sum(), rtol=1e-4, atol=1e-6)


def test_occlusion_finds_the_only_patch_that_differs(llava: Llava, asked: Conversation) -> None:
    looked = Relevance(llava, asked, open_file)
    assert looked.layout.features is not None
    plain = looked.layout.features[:1].expand_as(looked.layout.features).clone()
    looked.layout = Layout(looked.layout.ids, looked.layout.places, plain)
    assert looked.map(0, "occlusion").sum().item() == pytest.approx(0, abs=1e-4), "nothing differs, nothing is lost"
    for sign in (1, -1):  # one of the two makes the token likelier
        planted = plain.clone()
        planted[27] += sign * 8 * torch.randn(plain.shape[-1], generator=torch.Generator().manual_seed(3))
        looked.layout = Layout(looked.layout.ids, looked.layout.places, planted)
        found = looked.map(0, "occlusion")
        if found[0, 3, 3] > 0:
            break
    assert found[0, 3, 3] == found.max() and found[0, 3, 3] > 0.5


def test_what_comes_behind_a_token_changes_nothing(llava: Llava, asked: Conversation) -> None:
    longer = Conversation("longer", (asked.messages[0], Message("assistant", "red and blue")))
    short, long = Relevance(llava, asked, open_file), Relevance(llava, longer, open_file)
    assert short.rendered.ids[short.tokens[0]] == long.rendered.ids[long.tokens[0]]
    for method in ("relevance", "attention", "occlusion"):
        a, b = (one.map(0, method, relative=False) for one in (short, long))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    other = short.map(0, "relevance", relative=False) - long.map(2, "relevance", relative=False)
    assert other.abs().max() > 1e-4, "another token has another map"


def test_what_cannot_be_looked_into_is_said(llava: Llava, asked: Conversation) -> None:
    with pytest.raises(ModelError, match="no image"):
        Relevance(llava, Conversation("t", (Message("user", "hi"), Message("assistant", "x"))), open_file)
    looked = Relevance(llava, asked, open_file)
    with pytest.raises(ModelError, match="token 99"):
        looked.map(99)
    with pytest.raises(ModelError, match="'magic'"):
        looked.map(0, "magic")
