"""One door: what a name is follows from what lies there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import ModelError
from workbench.inference.engine import Engine
from workbench.inference.opening import open_model
from workbench.model import llava
from workbench.model.checkpoint import save
from workbench.recipe import ModelSpec
from workbench.remote import RemoteModel

SHORT = SamplingOptions(max_tokens=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(vision="tiny", language="tiny", device="cpu")
    built = llava.build(spec, template="tiny", image_mode="square")
    return save(built, tmp_path_factory.mktemp("opening") / "checkpoint")


def test_a_checkpoint_answers_about_a_file(checkpoint: Path, tmp_path: Path) -> None:
    PILImage.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    model = open_model(checkpoint)
    assert isinstance(model, Engine) and model.name == "checkpoint"
    asked = Conversation("c", ()).add("user", Image(str(tmp_path / "a.png")), "what is it?")
    assert model.reply(asked, SHORT).ids == Engine(llava.load(checkpoint)).reply(asked, SHORT).ids
    assert repr(model) == "Engine('checkpoint', LlamaModel in float32 on cpu, 64 image tokens)"


def test_a_url_is_an_endpoint() -> None:
    model = open_model("llava@http://127.0.0.1:9/v1")
    assert isinstance(model, RemoteModel) and (model.model, model.url) == ("llava", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("nowhere", {}, "no such folder"),
        ("llava@http://127.0.0.1:9/v1", {"load": "4bit"}, "runs elsewhere"),
        ("llava@http://127.0.0.1:9/v1", {"adapter": "folder"}, "runs elsewhere"),
        (".", {}, "found"),
    ],
)
def test_what_cannot_be_opened_is_told(
    name: str, more: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=told):
        open_model(name, **more)
