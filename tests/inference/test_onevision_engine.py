"""LLaVA-OneVision answers through the engine as through transformers' generate, about one picture and about several."""

from __future__ import annotations

import pytest
import torch
from PIL import Image as PILImage
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from tests.asking import PATCH, SIZE, byte_tokenizer, greedy
from tests.inference.test_next_engine import SHORT, SIZES, asked, picture, questions
from workbench.conversation import Conversation, Image
from workbench.inference.attachments import TrackedOpener
from workbench.inference.engine import Engine
from workbench.inference.relevance import Relevance
from workbench.inference.whole_pass import likelihoods, slots
from workbench.model.anyres import ONEVISION_GRIDS, pinpoints_of
from workbench.model.joint import tiling_of
from workbench.model.llava import Llava
from workbench.model.renderer import Renderer
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import PADDED

LIMIT = 1
"""So few tiles' tokens that pictures of `SIZES` are scaled down."""


@pytest.fixture(scope="module")
def llava() -> Llava:
    """Weights are drawn wide, so that what is likely depends on every token and pixel and nothing is nearly tied."""
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**shape, image_size=SIZE, patch_size=PATCH),
        text_config=Qwen2Config(**shape, num_key_value_heads=2, vocab_size=300, max_position_embeddings=512),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
        image_grid_pinpoints=pinpoints_of(SIZE, ONEVISION_GRIDS),
        vision_aspect_ratio=f"anyres_max_{LIMIT}",
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight *= 4
    model.model.image_newline *= 8
    settings = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    mode = AnyResMode(tiling_of(config), settings)  # type: ignore[arg-type]
    place = torch.device("cpu")
    return Llava(model, tokenizer, Renderer(tokenizer, "tiny"), mode, {}, place, torch.float32)


def generated(llava: Llava, conversation: Conversation) -> tuple[int, ...]:
    """What transformers writes: its own counts, its own order of tiles, told how many pictures there are."""
    rendered = llava.renderer.prompt(conversation)
    pictures = [picture(image) for image in rendered.images]
    shown = [llava.show(one, len(pictures)) for one in pictures]
    counts = [llava.tiling.tokens(one.size) for one in shown]
    ids = torch.tensor([llava.renderer.expand(rendered, counts, llava.image_token_id)[0]])
    most = max((len(one.tiles) for one in shown), default=0)
    padded = [torch.cat([one.tiles, one.tiles.new_zeros(most - len(one.tiles), 3, SIZE, SIZE)]) for one in shown]
    sizes = torch.tensor([[one.height, one.width] for one in pictures])
    told = {"image_sizes": sizes, "batch_num_images": torch.tensor([len(shown)])}
    images = {"pixel_values": torch.stack(padded), **told} if shown else {}
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


def test_a_prompt_has_as_many_tokens_as_its_pictures_make_alone_or_together(llava: Llava) -> None:
    with Engine(llava, open_image=picture) as engine:
        usage = {name: engine.reply(asked(0, name), SHORT).usage.prompt_tokens for name in SIZES}
        both = engine.reply(asked(0, "a", "b"), SHORT).usage
    text = usage["a"] - llava.tiling.tokens(SIZES["a"])
    assert usage == {name: text + llava.tiling.tokens(size) for name, size in SIZES.items()}
    assert len(set(usage.values())) > 2 and both.image_tokens == 2 * (16 + 1)


def test_a_picture_that_another_joins_is_looked_at_anew_and_then_known_in_both_ways(llava: Llava) -> None:
    """A talk about one picture, then about two: the first one's tokens are others, and nothing is taken for them."""
    first = asked(3, "a")
    second = first.add("assistant", "a cube").add("user", "and this?", Image("b"))
    opener = TrackedOpener(picture, lambda image: image.path)  # a picture that is known is not opened again
    with Engine(llava, open_image=opener) as engine:
        answers = [engine.reply(one, SHORT) for one in (first, second, first, second)]
        found = [(answer.ids, answer.usage.cached_tokens) for answer in answers]
    expected = [generated(llava, first), generated(llava, second)] * 2
    assert [ids for ids, _ in found] == expected and expected[0] != expected[1]
    assert found[1][1] <= 8, "what stands before the picture at most"
    assert all(cached > 16 for _, cached in found[2:])


def test_a_square_alone_and_the_same_square_beside_others_have_two_names(llava: Llava) -> None:
    """A picture of just one tile looks alike in both ways, but for the tiles of its grid."""
    square = PILImage.new("RGB", (SIZE, SIZE), "white")
    alone, beside = llava.show(square), llava.show(square, 2)
    assert torch.equal(alone.tiles[0], beside.tiles[0]) and beside.size == PADDED != alone.size
    assert (len(alone.tiles), len(beside.tiles)) == (2, 1)


def test_a_pass_over_a_conversation_gives_each_token_its_likelihood(llava: Llava) -> None:
    for names in ("a", "ad"):
        conversation = asked(1, *names).add("assistant", "a cube")
        rendered = llava.renderer.render(conversation)
        shown = [llava.show(picture(image), len(names)) for image in rendered.images]
        counts = slots(llava, rendered, picture)
        assert counts == [llava.tiling.tokens(one.size) for one in shown]
        found = likelihoods(llava, rendered, picture)
        ids, _ = llava.renderer.expand(rendered, counts, llava.image_token_id)
        with torch.no_grad():
            features = llava.image_inputs(llava.look(shown))
            logits = llava.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=features).logits[0]
        last = logits[-2].log_softmax(-1)[ids[-1]]
        assert found[-1] is not None and found[-1].logprob == pytest.approx(float(last), abs=1e-4)


def test_maps_of_what_was_looked_at_lie_over_one_picture_and_over_several(llava: Llava) -> None:
    edge = SIZE // PATCH
    for names in ("a", "ad"):
        conversation = asked(1, *names).add("assistant", "yes")
        looked = Relevance(llava, conversation, picture)
        for method in ("relevance", "attention", "occlusion"):
            found = looked.map(0, method, relative=False)
            assert found.shape == (len(names), edge, edge) and float(found.sum()) == pytest.approx(1, abs=1e-4)
