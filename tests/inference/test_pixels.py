"""A picture is opened once as long as it is the same one, and never taken for another."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image as PILImage

from tests.asking import picture, random_llava
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.errors import ImageError
from workbench.inference import attachments
from workbench.inference.attachments import SETTLED, TrackedOpener, file_state, open_file
from workbench.inference.engine import Engine
from workbench.inference.pixels import KEPT, Pixels
from workbench.model.llava import Llava

SHORT = SamplingOptions(max_tokens=6)


@pytest.fixture(scope="module")
def llava() -> Llava:
    return random_llava()


class Files:
    """Pictures on the disk, and how often each was opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened = 0
        self.opener = TrackedOpener(self._open, file_state)

    def write(self, name: str, shown: str) -> Path:
        """A BMP of always the same size, as old as a file has to be to be known again."""
        path = self.folder / name
        picture(Image(shown)).save(path, "BMP")
        time.sleep(1.2 * SETTLED)
        return path

    def _open(self, image: Image) -> PILImage.Image:
        self.opened += 1
        return open_file(image)


def asked(path: Path, text: str = "what is it") -> Conversation:
    return Conversation("c", ()).add("user", Image(str(path)), text)


def forget(engine: Engine) -> None:
    engine._generator.prefixes.clear()
    engine.features.clear()
    engine._generator.batch.beginnings.rest = None


def test_a_second_question_and_a_second_turn_open_nothing(llava: Llava, tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = files.write("a.bmp", "a")
    engine = Engine(llava, open_image=files.opener)
    first = engine.reply(asked(path), SHORT)
    again = asked(path).add("assistant", first.text).add("user", "and now")
    assert engine.reply(again, SHORT).usage.cached_tokens > first.usage.prompt_tokens
    assert engine.reply(asked(path, "how many"), SHORT).text is not None
    assert files.opened == 1


def test_a_picture_that_was_changed_is_another_one(llava: Llava, tmp_path: Path) -> None:
    """Even where its size and its time of change are what they were."""
    files = Files(tmp_path)
    path = files.write("a.bmp", "a")
    engine = Engine(llava, open_image=files.opener)
    before, held = engine.reply(asked(path), SHORT), os.stat(path)
    files.write("a.bmp", "b")
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    time.sleep(1.2 * SETTLED)
    now = os.stat(path)
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (held.st_size, held.st_mtime_ns, held.st_ino)
    after = engine.reply(asked(path), SHORT)
    assert after.ids == Engine(llava, open_image=picture).reply(asked(Path("b")), SHORT).ids != before.ids
    assert files.opened == 2


def test_a_file_that_was_just_written_is_not_known_yet(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(Image("a")).save(path)
    image = Image(str(path))
    assert file_state(image) is None
    time.sleep(1.2 * SETTLED)
    assert file_state(image) == file_state(Image(f"{path}#page=2")) is not None
    assert file_state(Image(str(tmp_path / "nothing"))) is None


def test_what_changes_between_asking_and_looking_is_refused(llava: Llava, tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = files.write("a.bmp", "a")
    engine = Engine(llava, open_image=files.opener)
    assert engine.reply(asked(path), SHORT).text is not None
    answer = engine.reply(asked(path, "how many"), SHORT)  # begins when it is read
    files.write("a.bmp", "b")
    forget(engine)
    with pytest.raises(ImageError, match="a picture that changed while it was asked about; ask again"):
        assert answer.text
    assert engine.reply(asked(path), SHORT).ids == Engine(llava, open_image=picture).reply(asked(Path("b")), SHORT).ids


def test_what_is_forgotten_is_opened_again(llava: Llava, tmp_path: Path) -> None:
    """Pixels are needed again where neither features nor keys and values are kept."""
    files = Files(tmp_path)
    path = files.write("a.bmp", "a")
    engine = Engine(llava, open_image=files.opener)
    first = engine.reply(asked(path), SHORT)
    forget(engine)
    again = engine.reply(asked(path), SHORT)
    assert (again.ids, again.usage.cached_tokens, files.opened) == (first.ids, 0, 2)


def test_only_so_many_names_are_kept(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    opener = TrackedOpener(lambda image: (opened.append(image.path), picture(image))[1], lambda image: image.path)
    assert KEPT > 100
    monkeypatch.setattr("workbench.inference.pixels.KEPT", 2)
    pixels = Pixels()
    names = [pixels.of(Image(path), opener, llava).name for path in "abacab"]
    assert names[0] == names[2] == names[4] and names[1] == names[5] != names[3]
    assert opened == ["a", "b", "c", "b"]


def test_any_other_function_is_asked_every_time(llava: Llava) -> None:
    opened: list[str] = []
    engine = Engine(llava, open_image=lambda image: (opened.append(image.path), picture(image))[1])
    for _ in range(2):
        assert engine.reply(asked(Path("a")), SHORT).text is not None
    assert opened == ["a", "a"] and isinstance(attachments.open_file, TrackedOpener)
