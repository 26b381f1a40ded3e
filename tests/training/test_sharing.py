"""Sharing is exact (law 2): against transformers' own forward, conversation by conversation, with pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from workbench.conversation import Conversation, Image, Message
from workbench.model.stages import prepare
from workbench.training import attention
from workbench.training.batch import collate
from workbench.training.example import Example
from workbench.training.examples import to_example
from workbench.training.forward import logits, token_losses
from workbench.training.packing import Entry, group, packs, trees

KEYS = [f"images/{number}.png" for number in range(3)]


def conversation(name: str, image: int | None, words: Sequence[str], caption: bool = False) -> Conversation:
    """Question and answer by turns, the first question about the image."""
    media = () if image is None else (Image(f"{image}.png"),)
    turns = [Message("assistant" if n % 2 else "user", (word,)) for n, word in enumerate(words)]
    turns[0] = Message("user", media if caption else (*media, words[0]))
    return Conversation(name, tuple(turns))


@pytest.fixture(scope="module")
def pixels() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(3, 24, 24, generator=generator) for key in KEYS}


@pytest.fixture
def prepared(
    make_recipe: Callable[..., Any], make_llava: Callable[..., Any], off_zero: Callable[..., Any]
) -> Callable[..., Any]:
    """A model prepared as the overrides say, adapters moved off zero so that gradients reach all of them."""

    def made(*overrides: str) -> Any:
        recipe = make_recipe("unused", *overrides)
        llava = make_llava(recipe)
        prepare(llava, recipe.train, say=lambda text: None)
        off_zero(llava)
        return llava

    return made


def entries(examples: Sequence[Example]) -> list[Entry]:
    """What the length index says of each."""
    return [
        Entry(number, e.tokens, e.prefix, e.supervised, len(e.images), e.shared_images, e.share_key)
        for number, e in enumerate(examples)
    ]


def gradients(llava: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    llava.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in llava.model.named_parameters() if p.grad is not None}


def vanilla(llava: Any, examples: Sequence[Example], pixels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Transformers' own forward, one conversation at a time, all logits, its own labels; the mean over all tokens."""
    total, count = torch.zeros(()), 0
    for example in examples:
        whole, places = example.expand()
        ids = torch.from_numpy(np.where(whole == -200, llava.image_token_id, whole))[None].long()
        images = torch.stack([pixels[key] for key in example.images]) if example.images else None
        scores = llava.model(input_ids=ids, pixel_values=images).logits[0]
        places = torch.from_numpy(places)
        total = total + functional.cross_entropy(scores[places - 1], ids[0, places], reduction="sum")
        count += len(places)
    return total / count


def ours(
    llava: Any, examples: Sequence[Example], pixels: dict[str, torch.Tensor], *, share: bool, pack_tokens: int
) -> torch.Tensor:
    cut = trees(group(entries(examples), share=share), max_share=4, max_tokens=10_000)
    total = sum(tree.supervised for tree in cut)
    losses = []
    for held in packs(cut, pack_tokens):
        laid = [[examples[entry.number] for entry in tree.members] for tree in held]
        batch = collate(laid, image_token_id=llava.image_token_id)
        images = torch.stack([pixels[key] for key in batch.images]) if batch.images else None
        if images is not None and not llava.vision_trains:
            images = llava.tower_features(images)
        losses.append(token_losses(llava, batch, images).sum() / total)
    return torch.stack(losses).sum()


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every gradient within 1e-5 of the reference, relative to the largest of its tensor."""
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        bound = 1e-5 * grad.abs().max().clamp_min(1e-4)
        worst = (found[name] - grad).abs().max()
        assert worst <= bound, f"{name}: {worst:.2e} > {bound:.2e}"


MIXED = [
    conversation("a", 0, ["What is it?", "A red disc.", "Sure?", "Yes."]),
    conversation("b", 0, ["Colour", "Red."]),
    conversation("c", 1, ["How many things are there in the picture?", "Two."]),
    conversation("d", None, ["What is 1+1?", "2"]),
    conversation("e", 0, ["Why?", "Because it is so."]),
]


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.language=lora",),
        ("train.language=frozen", "train.stage=align"),
        ("train.language=full",),
        ("train.language=lora", "train.vision=full"),
        ("train.language=lora", "train.vision=lora", "model.load=4bit"),
    ],
    ids=["lora", "align", "full", "lora and tower", "4bit and tower lora"],
)
def test_loss_and_every_gradient_equal_the_unshared_computation(
    prepared: Callable[..., Any], pixels: dict[str, torch.Tensor], overrides: tuple[str, ...]
) -> None:
    llava = prepared(*overrides)
    llava.model.train()
    examples = [to_example(one, llava) for one in MIXED]
    reference = vanilla(llava, examples, pixels)
    expected = gradients(llava, reference)
    for share, pack_tokens in ((True, 10_000), (True, 1), (True, 400), (False, 400)):
        loss = ours(llava, examples, pixels, share=share, pack_tokens=pack_tokens)
        assert abs(loss.item() - reference.item()) <= 1e-5 * reference.item()
        assert_close(gradients(llava, loss), expected)


def test_captions_of_one_image_are_all_predicted_from_its_last_token(
    prepared: Callable[..., Any], pixels: dict[str, torch.Tensor]
) -> None:
    """Template `plain`: the caption begins right behind the image, so one place has several targets."""
    llava = prepared("train.language=lora", "template=plain")
    captions = [conversation(str(n), 0, ["", text], caption=True) for n, text in enumerate(["A cat.", "Bird", "A car"])]
    examples = [to_example(one, llava) for one in captions]
    batch = collate([examples], image_token_id=llava.image_token_id)
    assert len(set(batch.rows.tolist())) < len(batch.rows)
    reference = vanilla(llava, examples, pixels)
    expected = gradients(llava, reference)
    loss = ours(llava, examples, pixels, share=True, pack_tokens=1)
    assert abs(loss.item() - reference.item()) <= 1e-5 * reference.item()
    assert_close(gradients(llava, loss), expected)


@pytest.fixture(scope="module")
def frozen(parts: dict[str, Any]) -> Any:
    from workbench.model.llava import build
    from workbench.recipe import ModelSpec

    spec = ModelSpec(vision=str(parts["clip"]), language=str(parts["llama"]), device="cpu")
    return build(spec, template="tiny", image_mode="square", seed=0)


drawn = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 2)), st.lists(st.text("abc ", min_size=1, max_size=6), min_size=2)),
    min_size=1,
    max_size=6,
).map(lambda held: [(image, [f"{word}." for word in words][: len(words) // 2 * 2]) for image, words in held])


@given(drawn=drawn, pack_tokens=st.integers(1, 900))
@settings(max_examples=15)
def test_the_loss_does_not_depend_on_packing(
    frozen: Any, pixels: dict[str, torch.Tensor], drawn: list[tuple[int | None, list[str]]], pack_tokens: int
) -> None:
    examples = [to_example(conversation(str(n), *held), frozen) for n, held in enumerate(drawn)]
    with torch.no_grad():
        reference = vanilla(frozen, examples, pixels).item()
        for share in (True, False):
            loss = ours(frozen, examples, pixels, share=share, pack_tokens=pack_tokens).item()
            assert abs(loss - reference) <= 1e-5 * reference


def test_editing_one_branch_moves_no_other_branch_and_no_other_tree(
    frozen: Any, pixels: dict[str, torch.Tensor]
) -> None:
    """No leak: three branches of one image, one of another, a text: only what is edited has other logits."""

    def scores(answers: list[str]) -> dict[str, torch.Tensor]:
        places = [0, 0, 0, 1, None]
        held = [
            to_example(conversation(f"c{n}", places[n], ["Is it?", text]), frozen) for n, text in enumerate(answers)
        ]
        batch = collate([held[:3], held[3:4], held[4:]], image_token_id=frozen.image_token_id)
        with torch.no_grad():
            rows = logits(frozen, batch, frozen.tower_features(torch.stack([pixels[key] for key in batch.images])))
        return {name: rows[batch.conversations == n] for n, name in enumerate(batch.ids)}

    said = ["Yes.", "No no.", "Maybe.", "Blue.", "Two."]
    before = scores(said)
    same_length = ["Oh!!", "On it.", "Larger", "Fine.", "Six."]  # so that the same sums are made in the same order
    for edited, text in enumerate(same_length):
        after = scores([text if n == edited else word for n, word in enumerate(said)])
        for name, rows in after.items():
            if name == f"c{edited}":
                assert rows.shape != before[name].shape or not torch.allclose(before[name][1:], rows[1:])
            else:
                assert torch.allclose(before[name], rows, rtol=0, atol=1e-6), name


def test_generation_after_training_is_plain_attention_with_padding(frozen: Any) -> None:
    """The attention that knows trees stays in the model; a forward without trees must give what sdpa gives."""
    ids = torch.tensor([[4, 5, 6, 7, 8], [2, 2, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    language = frozen.model.model.language_model
    with torch.no_grad():
        found = {}
        for kind in ("sdpa", attention.NAME):
            language.set_attn_implementation(kind)
            found[kind] = frozen.model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert torch.equal(found["sdpa"], found[attention.NAME])


def test_cached_features_give_the_bits_that_pixels_give(frozen: Any, pixels: dict[str, torch.Tensor]) -> None:
    example = to_example(conversation("a", 0, ["Is it?", "Yes."]), frozen)
    batch = collate([[example]], image_token_id=frozen.image_token_id)
    images = torch.stack([pixels[key] for key in batch.images])
    with torch.no_grad():
        cached = logits(frozen, batch, frozen.tower_features(images))
        whole = frozen.model(input_ids=batch.input_ids, pixel_values=images).logits[0, batch.rows]
    assert torch.equal(cached, whole)
