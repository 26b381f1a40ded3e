"""LLaVA-NeXT answers through the engine as through transformers' generate, whatever sizes pictures have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from tests.asking import PATCH, SIZE, WORDS, byte_tokenizer, greedy
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message
from workbench.inference.engine import Engine
from workbench.inference.relevance import Relevance, _eager
from workbench.inference.whole_pass import likelihoods, slots
from workbench.model.joint import tiling_of
from workbench.model.llava import Llava
from workbench.model.renderer import Renderer
from workbench.model.tiles import AnyResMode

SHORT = SamplingOptions(max_tokens=8)
SIZES = {"a": (40, 30), "b": (30, 70), "c": (64, 64), "d": (200, 12), "e": (9, 9)}
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]


@pytest.fixture(scope="module")
def llava() -> Llava:
    """Weights are drawn wide, so that what is likely depends on every token and pixel and nothing is nearly tied."""
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=SIZE, patch_size=PATCH),
        text_config=LlamaConfig(**shape, num_key_value_heads=2, vocab_size=300, max_position_embeddings=512),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
        image_grid_pinpoints=PINPOINTS,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight *= 4
    model.model.image_newline *= 8
    settings = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3}
    mode = AnyResMode(tiling_of(config), settings)  # type: ignore[arg-type]
    place = torch.device("cpu")
    return Llava(model, tokenizer, Renderer(tokenizer, "tiny"), mode, {}, place, torch.float32)


def picture(image: Image) -> PILImage.Image:
    width, height = SIZES[image.path]
    noise = np.random.default_rng(list(image.path.encode())).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


def asked(number: int, *images: str) -> Conversation:
    text = " ".join(WORDS[(number * 7 + n) % len(WORDS)] for n in range(1 + number % 4))
    return Conversation(f"c{number}", (Message("user", (*map(Image, images), text)),))


def questions() -> list[Conversation]:
    """About one picture of each size, about two, about none, and with a second turn."""
    made = [asked(number, *names) for number, names in enumerate(("a", "b", "c", "d", "e", "ab", "ed", "", "a", "b"))]
    again = made[2].add("assistant", "a cube").add("user", "and this?", Image("b"))
    return [*made, again]


def generated(llava: Llava, conversation: Conversation) -> tuple[int, ...]:
    """What transformers writes: its own counts, its own order of tiles."""
    rendered = llava.renderer.prompt(conversation)
    pictures = [picture(image) for image in rendered.images]
    counts = [llava.tiling.tokens(one.size) for one in pictures]
    ids = torch.tensor([llava.renderer.expand(rendered, counts, llava.image_token_id)[0]])
    shown = [llava.image_mode.tiles(one) for one in pictures]
    most = max(map(len, shown), default=0)
    padded = [torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])]) for one in shown]
    sizes = torch.tensor([[one.height, one.width] for one in pictures])
    images = {"pixel_values": torch.stack(padded), "image_sizes": sizes} if shown else {}
    return greedy(llava, ids, SHORT.max_tokens, **images)


def test_answers_are_those_of_generate_alone_and_together(llava: Llava) -> None:
    conversations = questions()
    expected = [generated(llava, one) for one in conversations]
    assert len(set(expected)) > 8, "else this test would show nothing"
    with Engine(llava, open_image=picture) as engine:
        assert [engine.reply(one, SHORT).ids for one in conversations] == expected
    with Engine(llava, open_image=picture) as engine:
        assert [answer.ids for answer in engine.reply_batch(conversations, SHORT)] == expected
        again = engine.reply_batch(conversations, SHORT)
    assert [answer.ids for answer in again] == expected
    assert all(answer.usage.cached_tokens > 16 for answer, one in zip(again, conversations, strict=True) if one.images)


def test_a_prompt_has_as_many_tokens_as_its_pictures_make(llava: Llava) -> None:
    with Engine(llava, open_image=picture) as engine:
        usage = {name: engine.reply(asked(0, name), SHORT).usage.prompt_tokens for name in SIZES}
    text = usage["a"] - llava.tiling.tokens(SIZES["a"])
    assert usage == {name: text + llava.tiling.tokens(size) for name, size in SIZES.items()}
    assert len(set(usage.values())) > 3


def test_the_same_tiles_of_pictures_of_other_sizes_are_never_taken_for_each_other(llava: Llava) -> None:
    """A narrow picture, and the same with black beside it: on the grid both look alike, but for which tokens count."""
    narrow, wide = PILImage.new("RGB", (20, 64), "white"), PILImage.new("RGB", (28, 64), "black")
    wide.paste(narrow, (4, 0))
    dark = {f"dark {one}": PILImage.new("RGB", one.size, "black") for one in (narrow, wide)}
    shown = {"narrow": narrow, "wide": wide} | dark
    assert torch.equal(*(llava.image_mode.tiles(one)[1:] for one in (narrow, wide)))
    assert torch.equal(*map(llava.image_mode.tiles, dark.values())), "the whole picture, too"
    assert llava.tiling.tokens(narrow.size) == 40 and llava.tiling.tokens(wide.size) == 56
    conversations = [Conversation(name, (Message("user", (Image(name), "is it?")),)) for name in shown]

    def opened(image: Image) -> PILImage.Image:
        return shown[image.path]

    both = Conversation("both", (Message("user", (*map(Image, dark), "which?")),))
    with Engine(llava, open_image=opened) as warm:
        answers = [warm.reply(one, SHORT) for one in (*conversations, *conversations, both)]
        found = [(answer.ids, answer.usage.cached_tokens) for answer in answers]
    expected = []
    for one in (*conversations, both):
        with Engine(llava, open_image=opened) as cold:
            expected.append(cold.reply(one, SHORT).ids)
    assert [ids for ids, _ in found] == [*expected[:4], *expected]
    with Engine(llava, open_image=opened) as together:
        assert [one.ids for one in together.reply_batch([*conversations, both], SHORT)] == expected
    assert all(cached <= 8 for _, cached in found[:4]), "what stands before the picture at most"
    assert all(cached > 16 for _, cached in found[4:8])


def test_a_pass_over_a_conversation_gives_each_token_its_likelihood(llava: Llava) -> None:
    conversation = asked(1, "a", "d").add("assistant", "a cube")
    rendered = llava.renderer.render(conversation)
    counts = slots(llava, rendered, picture)
    assert counts == [llava.tiling.tokens(SIZES[name]) for name in "ad"]
    found = likelihoods(llava, rendered, picture)
    ids, _ = llava.renderer.expand(rendered, counts, llava.image_token_id)
    with torch.no_grad():
        rows = llava.look([llava.show(picture(image)) for image in rendered.images])
        logits = llava.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=llava.image_inputs(rows)).logits[0]
    last = logits[-2].log_softmax(-1)[ids[-1]]
    assert found[-1] is not None and found[-1].logprob == pytest.approx(float(last), abs=1e-4)


def test_maps_of_what_was_looked_at_lie_over_the_whole_picture(llava: Llava) -> None:
    conversation = asked(1, "a", "d").add("assistant", "a cube")
    looked = Relevance(llava, conversation, picture)
    edge = SIZE // PATCH
    for method in ("relevance", "attention", "occlusion"):
        found = looked.map(0, method, relative=False)
        assert found.shape == (2, edge, edge) and float(found.sum()) == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        inputs = llava.image_inputs(llava.look([llava.show(picture(image)) for image in looked.rendered.images]))
        with _eager(llava):
            out = llava.model(input_ids=looked.layout.ids, mm_encoder_outputs=inputs, output_attentions=True)
    place = looked.layout.places[looked.tokens[0]]
    mean = torch.stack([layer[0].mean(0) for layer in out.attentions]).mean(0)[place - 1]
    mean = mean[looked.layout.ids[0] == llava.image_token_id]
    assert (edge, llava.tiling.tokens(SIZES["a"]), len(mean)) == (4, 16 + 4 * (6 + 1), 16 + 28 + 16)
    expected = torch.stack([mean[:16], mean[-16:]]).reshape(2, 4, 4)  # "d" is so thin that its tiles keep nothing
    across = [0, 1, 1, 2, 3, 3]  # 40 x 30: six columns of tokens lie over four of the whole picture; then a newline
    for row in range(4):
        for column in range(6):
            expected[0, row, across[column]] += mean[16 + 7 * row + column]
    found = looked.map(0, "attention", relative=False)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-4, atol=1e-6)
    assert looked.map(0).shape == (2, 4, 4), "relative to a neutral question about the same pictures"
