"""Runs on one base: each answers as it does alone, and the base as it did before; all share its weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import ModelError
from workbench.inference.engine import Engine
from workbench.inference.opening import open_beside, open_model
from workbench.model import llava
from workbench.model.checkpoint import save
from workbench.model.lora import adapted, adapter_parameters, attach
from workbench.recipe import LoraSpec, ModelSpec

SHORT = SamplingOptions(max_tokens=8)


def tuned(folder: Path, seed: int, *, template: str = "tiny", r: int = 4) -> Path:
    """A run's checkpoint on the tiny parts: projector and adapter as training might leave them."""
    built = llava.build(ModelSpec(vision="tiny", language="tiny", device="cpu"), template=template, image_mode="square")
    attach(built, LoraSpec(r=r, alpha=2 * r))
    source = torch.Generator().manual_seed(seed)
    for weight in [*adapter_parameters(built.model).values(), *built.projector.parameters()]:
        weight.data = torch.randn(weight.shape, generator=source) * 0.2
    return save(built, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: tuned(folder / name, seed, r=r) for name, seed, r in (("one", 1, 4), ("two", 2, 8))}


def picture(image: Image) -> PILImage.Image:
    noise = np.random.default_rng(list(image.path.encode())).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    return PILImage.fromarray(noise)


def questions() -> list[Conversation]:
    texts = ("what color is it?", "how many circles are there?", "is there a square?")
    return [Conversation(f"c{n}", ()).add("user", Image("ab"[n % 2]), text) for n, text in enumerate(texts * 2)]


def alone(source: Path) -> list[tuple[int, ...]]:
    engine = Engine(llava.load(source), open_image=picture)
    return [answer.ids for answer in engine.reply_batch(questions(), SHORT)]


def test_swapped_adapters_answer_as_their_own_models_do_also_at_once(runs: dict[str, Path]) -> None:
    one = open_model(runs["one"], open_image=picture)
    assert isinstance(one, Engine)
    two, base = one.adapted(runs["two"]), one.base()
    expected = {"one": alone(runs["one"]), "two": alone(runs["two"])}
    bare = llava.load(runs["one"])
    for _, layer in adapted(bare.model):
        layer.enable_adapters(False)
    expected["base"] = [answer.ids for answer in Engine(bare, open_image=picture).reply_batch(questions(), SHORT)]
    assert len({tuple(ids) for ids in expected.values()}) == 3  # else this test would show nothing
    engines = {"one": one, "two": two, "base": base}
    for _ in range(2):
        for name, engine in engines.items():
            assert [engine.reply(asked, SHORT).ids for asked in questions()] == expected[name]
    with ThreadPoolExecutor(9) as pool:
        jobs = [(name, n, asked) for _ in range(2) for n, asked in enumerate(questions()) for name in engines]
        given = list(pool.map(lambda job: engines[job[0]].reply(job[2], SHORT).ids, jobs))
    assert given == [expected[name][n] for name, n, _ in jobs]
    assert not any(weight.requires_grad for weight in one.llava.model.parameters())


def test_a_comparison_shares_the_weights_of_the_base(runs: dict[str, Path]) -> None:
    one = open_model(runs["one"], open_image=picture)
    beside, before = open_beside(one, runs["two"]), open_beside(one)
    assert isinstance(beside, Engine) and isinstance(before, Engine) and isinstance(one, Engine)
    assert beside.llava is before.llava is one.llava
    assert (beside.name, before.name) == ("two", "one (base)")


def test_another_base_or_form_is_not_put_on(runs: dict[str, Path], tmp_path: Path) -> None:
    one = open_model(runs["one"], open_image=picture)
    assert isinstance(one, Engine)
    other = tuned(tmp_path / "other", 3, template="plain")
    with pytest.raises(ModelError, match="another template: 'plain'"):
        one.adapted(other)
    beside = open_beside(one, other)
    assert isinstance(beside, Engine) and beside.llava is not one.llava
