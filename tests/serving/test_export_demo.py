"""A demo that was given away runs without workbench and says what the engine says; a hand-over to vLLM is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from workbench import cli
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.data.images import load_image
from workbench.inference.opening import open_model
from workbench.serving.demo.turns import NotAnswered, Settings
from workbench.serving.demo_run import PageModel
from workbench.serving.export_demo import _copy_page, export_demo

sys.path.insert(0, str(Path(__file__).parent))
from small_run import answers, ask, page_of, small_run, wait_until_done  # noqa: E402

QUESTION = "Describe the picture in detail."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a quantised base, whose adapter changed what the model says."""
    return small_run(tmp_path_factory.mktemp("trained"), load="4bit")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = PILImage.effect_noise((120, 60), 60).convert("RGB")
    noise.paste((200, 30, 30), (20, 10, 60, 50))
    noise.save(tmp_path / "red.png")
    return tmp_path / "red.png"


def by_the_engine(run: Path, picture: Path) -> str:
    asked = Conversation("asked", ()).add("user", Image(str(picture)), QUESTION)
    return open_model(run, device="cpu").reply(asked, SamplingOptions(max_tokens=256)).text.strip()


def python_without_workbench(folder: Path) -> Path:
    """An environment with every package of this one but workbench."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    site = Path(found.stdout.strip())
    for name in ("purelib", "platlib"):
        for path in Path(sysconfig.get_path(name)).iterdir():
            ours = (
                path.name.startswith(("workbench", "llava_workbench", "__editable__", "_llava"))
                or path.suffix == ".pth"
            )
            if not ours and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    return python


@pytest.mark.timeout(600)
@pytest.mark.flaky(reruns=1)
def test_the_folder_alone_answers_in_a_browser_as_the_engine_does(run: Path, picture: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), str(tmp_path / "demo"), "--as", "demo"]) == 0
    folder, python = (tmp_path / "demo").rename(tmp_path / "given"), python_without_workbench(tmp_path / "clean")
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WORKBENCH"))}
    missing = subprocess.run([python, "-c", "import workbench"], cwd=folder, env=alone, capture_output=True, text=True)
    assert "No module named 'workbench'" in missing.stderr
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [python, "-u", "app.py"], cwd=folder, env=alone | {"GRADIO_SERVER_NAME": "127.0.0.1"}, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        limit = time.monotonic() + 200
        while "demo of run at " not in (told := (tmp_path / "log").read_text()):
            assert process.poll() is None and time.monotonic() < limit, told
            time.sleep(0.2)
        url = told.split("demo of run at ")[1].split()[0]
        with page_of(url) as (page, asked):
            assert page.locator("#chats .example").count() == len(list(folder.glob("examples/*"))) > 0
            ask(page, QUESTION, picture)
            wait_until_done(page, 1)
            said = answers(page)
    finally:
        process.terminate()
        process.wait(60)
    assert said == [by_the_engine(run, picture)]
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


def test_the_start_of_a_demo_explains_itself_before_it_loads_anything(tmp_path: Path) -> None:
    _copy_page(tmp_path)
    for words, status, told in ((["--help"], 0, "GRADIO_SERVER_NAME"), (["--port", "1"], 2, "usage: app.py")):
        done = subprocess.run([sys.executable, "app.py", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and told in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_the_adapter_beside_its_base_says_the_same_in_every_image_mode(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    from workbench.serving.demo.answerer import Answerer

    folder = export_demo(run, tmp_path / "demo", weights="adapter", examples=0, device="cpu")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file() and not (folder / "examples").exists()
    assert "peft==" in (folder / "requirements.txt").read_text()
    given, here = Answerer(folder), PageModel(run, device="cpu")
    assert given.image_modes == here.image_modes
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": QUESTION}]
    messages, said = [{"role": "user", "content": content}], set()
    for mode in given.image_modes:
        settings = Settings(max_tokens=40, image_mode=mode)
        text = "".join(given.answer(messages, settings)).strip()
        assert text == "".join(here.answer(messages, settings)).strip()
        said.add(text)
    assert given.model.get_base_model().lm_head.weight.dtype.is_floating_point
    with pytest.raises(NotAnswered, match="the conversation writes '</s>', a mark of the model's own"):
        list(given.answer([{"role": "user", "content": [{"type": "text", "text": "a</s>"}]}], Settings()))
    with pytest.raises(NotAnswered, match=r"the conversation has \d+ tokens, and the model was built for fewer than"):
        list(given.answer([{"role": "user", "content": [{"type": "text", "text": "word " * 3000}]}], Settings()))
    pieces = given.answer(messages, Settings(max_tokens=200))
    next(pieces)
    pieces.close()  # ends the thread that generates


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "turned"])
def test_an_exported_demo_opens_pictures_as_workbench_does(kind: str, tmp_path: Path) -> None:
    from workbench.serving.demo.answerer import open_picture

    noise = PILImage.effect_noise((40, 30), 90).convert("RGB")
    path = tmp_path / ("a.jpg" if kind in ("CMYK", "turned") else "a.png")
    if kind == "turned":
        exif = PILImage.Exif()
        exif[0x0112] = 6
        noise.save(path, exif=exif)
    elif kind in ("RGBA", "LA"):
        layer = noise.convert("RGBA")
        layer.putalpha(PILImage.linear_gradient("L").resize((40, 30)))
        layer.convert(kind).save(path)
    elif kind == "I;16":
        noise.convert("L").point(lambda value: value * 257, "I").convert("I;16").save(path)
    else:
        noise.convert(kind).save(path)
    found, wanted = open_picture(str(path)), load_image(path)
    assert found.mode == "RGB" and found.tobytes() == wanted.tobytes()


def test_a_broken_picture_is_told_by_name(tmp_path: Path) -> None:
    from workbench.serving.demo.answerer import open_picture

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(NotAnswered, match=r"^broken.png is not a picture that can be read"):
        open_picture(str(tmp_path / "broken.png"))


def test_the_space_and_the_card_say_what_there_is(run: Path, tmp_path: Path) -> None:
    import yaml

    folder = export_demo(run, tmp_path / "demo", device="cpu")
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["license"] == "other"
    assert f"gradio=={head['sdk_version']}" in (folder / "requirements.txt").read_text()
    card = (folder / "MODEL_CARD.md").read_text()
    assert "LoRA of rank 32" in card and "their licences hold" in card and "No score is given" in card
    everything = "".join(
        path.read_text() for path in folder.rglob("*") if path.suffix in (".md", ".json", ".txt", ".py")
    )
    assert str(tmp_path.parent) not in everything and "import workbench" not in everything
    assert "from workbench" not in everything


@pytest.mark.parametrize("form", ["hf", "llava"])
def test_a_model_that_leaves_says_what_it_was_made_of_and_whose_licences_hold(
    form: str, run: Path, tmp_path: Path
) -> None:
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--as", form]) == 0
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert card.startswith("# run\n") and "| vision tower | `tiny`, Apache-2.0 |" in card
    assert "- The language model `tiny` ships with `workbench`, under Apache-2.0." in card
    assert "their licences hold" in card and "LoRA of rank 32" in card
    assert "app.py" not in card and "README.md" not in card and str(tmp_path.parent) not in card
    assert {oct(path.stat().st_mode & 0o444) for path in (tmp_path / "out").rglob("*")} == {"0o444"}


def test_a_demo_that_says_something_else_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from workbench.serving import export_demo as module

    def spoiled(folder: Path) -> None:
        copy(folder)
        about = json.loads((folder / "demo.json").read_text())
        about["image_modes"]["square"] |= {"size": {"shortest_edge": 192}, "do_center_crop": True}
        (folder / "demo.json").write_text(json.dumps(about))

    copy = module._copy_page
    monkeypatch.setattr(module, "_copy_page", spoiled)
    assert cli.main(["export", str(run), str(tmp_path / "demo"), "--as", "demo"]) == 1
    assert "error: the written demo: found other ids" in capsys.readouterr().err and not (tmp_path / "demo").exists()


def test_the_hand_over_to_vllm_has_the_model_the_command_and_says_that_it_was_not_run(
    run: Path, tmp_path: Path
) -> None:
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--as", "vllm"]) == 0
    folder = tmp_path / "out"
    assert (folder / "requirements.txt").read_text() == "vllm==0.33.0\n"
    script = (folder / "serve.sh").read_text()
    assert os.access(folder / "serve.sh", os.X_OK) and "vllm serve ./model" in script
    assert subprocess.run(["sh", "-n", folder / "serve.sh"]).returncode == 0
    assert "Not run here" in (folder / "README.md").read_text()
    assert "The language model was `tiny`: its licence (Apache-2.0)" in (folder / "README.md").read_text()
    assert "| language model | `tiny`, Apache-2.0 |" in (folder / "MODEL_CARD.md").read_text()
    said = open_model(folder / "model", device="cpu")
    assert said.name == "model" and (folder / "model" / "chat_template.jinja").is_file()


@pytest.mark.parametrize("form", ["demo", "vllm"])
def test_mistakes_are_one_line(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert cli.main(["export", "runs/none", str(tmp_path / "full"), "--as", form]) == 1
    assert "full: found files; expected a new or empty folder" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "none"), str(tmp_path / "out"), "--as", form]) == 1
    assert "error: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_adapter_for_a_llava_of_the_hub_names_it_and_brings_what_was_trained(
    run: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is a folder here: its name is what the demo loads the base by, in the 4 bits it was trained on."""
    from workbench.model.checkpoint import save
    from workbench.model.export import export_hf
    from workbench.model.llava import build
    from workbench.model.stages import prepare
    from workbench.run import Run
    from workbench.serving import export_demo as module
    from workbench.serving.demo.answerer import Answerer

    base, recipe = export_hf(run, tmp_path / "base", device="cpu"), Run.open(run).recipe
    spec = recipe.model.model_copy(
        update={"checkpoint": str(base), "vision": None, "language": None, "projector_from": None, "load": "4bit"}
    )
    llava = build(spec, template=recipe.template, image_mode=recipe.image_mode)
    prepare(llava, recipe.train, say=lambda text: None)
    for parameter in llava.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    save(llava, tmp_path / "tuned")
    monkeypatch.setattr(module, "_hub_base", lambda llava: str(base))
    folder = module.export_demo(tmp_path / "tuned", tmp_path / "demo", weights="adapter", device="cpu")
    assert not (folder / "model" / "model.safetensors").exists() and (folder / "trained.safetensors").is_file()
    assert "bitsandbytes==" in (folder / "requirements.txt").read_text()
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": QUESTION}]
    given, here = (
        "".join(model.answer([{"role": "user", "content": content}], Settings(max_tokens=30))).strip()
        for model in (Answerer(folder), PageModel(tmp_path / "tuned", device="cpu"))
    )
    assert given == here
