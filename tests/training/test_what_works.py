"""README's table of which model works with what, found by doing each thing with a small model of each family.

python -m pytest tests/training/test_what_works.py      # a failure prints the table as it should stand there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image as PILImage

from tests import families
from workbench.conversation import Conversation, Image, Message
from workbench.errors import WorkbenchError
from workbench.evaluation.task import evaluate
from workbench.inference.attachments import open_file
from workbench.inference.opening import open_model
from workbench.model.export import export_hf, export_original
from workbench.recipe import Recipe
from workbench.remote import RemoteModel
from workbench.serving.export_demo import export_demo
from workbench.serving.export_vllm import export_vllm
from workbench.serving.run import Server
from workbench.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_state")
Made = Callable[..., Any]
README = Path(__file__).parents[2] / "README.md"
OURS = {
    "LLaVA 1.0, 1.5": ("image_mode=pad",),
    "LLaVA-1.6 / NeXT": ("image_mode=anyres",),
    "LLaVA-NeXT-Video": ("image_mode=anyres_video_6",),
    "LLaVA-OneVision": ("image_mode=anyres_max_2", "template=qwen"),
}
"""Family -> what of a recipe makes a model of it."""
OTHERS = {
    "Qwen-VL": ("qwen2_vl",),
    "InternVL": ("internvl",),
    "SmolVLM, Idefics": ("smolvlm", "idefics3"),
    "BLIP-2, InstructBLIP": ("blip2", "blip2_t5", "instructblip"),
}
ENDPOINT = "`MODEL@URL`, GPT-4V and its like"
COLUMNS = ("chat", "evaluate", "serve", "align, finetune", "`--as hf`", "`--as llava`", "`--as demo`", "`--as vllm`")
REFUSED = "no"


@pytest.fixture
def asked(tmp_path: Path) -> Conversation:
    picture = tmp_path / "asked.png"
    PILImage.new("RGB", (40, 30), (220, 30, 30)).save(picture)
    return Conversation("a", (Message("user", (Image(str(picture)), "Which colour?")), Message("assistant", ("red",))))


@pytest.fixture
def trained(make_dataset: Made, make_recipe: Made, tmp_path: Path) -> Made:
    """`trained("image_mode=pad")`: the run of both stages, one step each."""
    dataset = make_dataset(split=True)

    def made(*overrides: str) -> Path:
        few = ("train.max_steps=1", "train.max_tokens=400", "train.pack_tokens=600", *overrides)
        first, second = tmp_path / "align", tmp_path / "finetune"
        train(make_recipe(dataset, *few, "train.stage=align", "train.language=frozen"), out=first, progress=False)
        train(make_recipe(dataset, *few, f"model.projector_from={first}"), out=second, progress=False)
        return second

    return made


def works(function: Callable[..., Any], *given: Any, **more: Any) -> str:
    """`yes`, or `no` where it is refused in a line of ours."""
    try:
        function(*given, **more)
    except WorkbenchError as refused:
        assert "\n" not in str(refused).strip()
        return REFUSED
    return "yes"


@contextmanager
def served(name: str | Path) -> Iterator[tuple[str, str]]:
    """(URL, model) of a server of ours."""
    model = open_model(name)
    with Server(model, port=0) as server:
        yield server.url, model.name


def ask(url: str, name: str, question: Conversation) -> None:
    told = RemoteModel(name, url=url, api_key="none", open_image=open_file).reply(question.prompt)
    assert told.finish_reason in ("stop", "length")
    assert OpenAI(base_url=url, api_key="none").models.list().data


def serve(name: str | Path, question: Conversation) -> None:
    with served(name) as (url, model):
        ask(url, model, question)


def uses(name: str | Path, question: Conversation, tune: Callable[[], Any], out: Path) -> list[str]:
    """A row of the table."""
    return [
        works(lambda: open_model(name).reply(question.prompt).text),
        works(lambda: evaluate(open_model(name), [question], max_tokens=4).rows["answer"][0]),
        works(serve, name, question),
        works(tune),
        works(export_hf, name, out / "hf"),
        works(export_original, name, out / "llava"),
        works(export_demo, name, out / "demo", examples=0),
        works(export_vllm, name, out / "vllm"),
    ]


def line(family: str, cells: list[str]) -> str:
    return f"| {family} | {' | '.join(cells)} |"


def check(family: str, cells: list[str]) -> None:
    expected = line(family, cells)
    text = README.read_text()
    assert "| " + " | ".join(("", *COLUMNS)).strip() + " |" in text, "the columns of README's table"
    assert expected in text.splitlines(), f"README's table has to say:\n{expected}"


@pytest.mark.parametrize("family", OURS)
def test_a_llava_does_what_the_table_says(
    family: str,
    trained: Made,
    onevision_parts: tuple[str, str],
    video_parts: str,
    asked: Conversation,
    tmp_path: Path,
) -> None:
    parts = {"LLaVA-OneVision": onevision_parts, "LLaVA-NeXT-Video": (video_parts,)}
    run = trained(*OURS[family], *parts.get(family, ()))
    check(family, uses(run, asked, lambda: None, tmp_path / "out"))


@pytest.mark.parametrize("family", OTHERS)
def test_another_family_does_what_the_table_says(
    family: str, make_dataset: Made, make_recipe: Made, asked: Conversation, tmp_path: Path
) -> None:
    rows = []
    for kind in OTHERS[family]:
        folder = families.made(kind, tmp_path / kind)
        recipe: Recipe = make_recipe(make_dataset(name=f"{kind}-data"), f"model.checkpoint={folder}")
        tune = lambda recipe=recipe, kind=kind: train(recipe, out=tmp_path / f"{kind}-run", progress=False)  # noqa: E731
        rows.append(uses(folder, asked, tune, tmp_path / f"{kind}-out"))
    assert all(row == rows[0] for row in rows)
    check(family, rows[0])


def test_an_endpoint_does_what_the_table_says(
    trained: Made, make_recipe: Made, asked: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with served(trained()) as (url, model):
        name = f"{model}@{url}"
        recipe = make_recipe("unused", f"model.checkpoint={name}")
        tune = lambda: train(recipe, out=tmp_path / "run", progress=False)  # noqa: E731
        check(ENDPOINT, uses(name, asked, tune, tmp_path / "out"))


def test_the_table_has_no_other_rows() -> None:
    text = README.read_text()
    start = text.index("| " + " | ".join(("", *COLUMNS)).strip() + " |")
    rows = text[start:].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*OURS, *OTHERS, ENDPOINT]
