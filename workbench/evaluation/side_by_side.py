"""Several models about a person's own pictures, side by side on one page that needs no model, network or script.

Knows: that models are opened one after the other, so that only one is in memory; that a picture or model that fails is
said in its place and takes no other with it. Does not know: which answer is better (`evaluate`, `wb.compare_answers`).
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.chat_model import ChatModel, SamplingOptions
from workbench.conversation import Conversation, Media, Message, Video, new_id
from workbench.data import images as picture_files
from workbench.data import video as video_files
from workbench.errors import DataError, ImageError, WorkbenchError, kind_of
from workbench.evaluation.report import write_page
from workbench.inference.attachments import attached_for, frames_read, open_file, seen_by, told_of_frames
from workbench.inference.opening import open_model
from workbench.model.sources import check_there
from workbench.progress import progress
from workbench.report import picture_source
from workbench.resources import check_writable

QUESTION = "Describe this image in detail."
SIDE = 480
"""Pixels of a picture on the page at most."""
BATCH = 8
"""Questions handed to a model at once."""


@dataclass(frozen=True)
class Said:
    """What one model said to one question about one picture."""

    model: str
    image: str
    question: str
    text: str | None
    error: str | None = None
    seconds: float = 0.0
    """Of its share of the batch it was answered in."""


@dataclass(frozen=True)
class SideBySide:
    """The page and what is on it."""

    page: Path
    answers: list[Said]
    notes: list[str]
    """What a person should know of how they were asked."""

    def __str__(self) -> str:
        failed = sum(one.error is not None for one in self.answers)
        told = f"{len(self.answers):,} answers{f', {failed} failed' if failed else ''}; written: {self.page}"
        return "\n".join([told, *(f"note: {note}" for note in self.notes)])

    @property
    def silent(self) -> list[str]:
        """The models that answered nothing at all, such as one that could not be opened."""
        spoke = {one.model for one in self.answers if one.error is None}
        return [name for name in dict.fromkeys(one.model for one in self.answers) if name not in spoke]

    def summary(self) -> dict[str, Any]:
        """For a program."""
        return {"written": str(self.page), "answers": [asdict(one) for one in self.answers], "notes": self.notes}


def compare_models(
    models: Sequence[ChatModel | str | Path],
    images: Sequence[str | Path] | str | Path,
    questions: Sequence[str] | str = QUESTION,
    *,
    out: str | Path = "models.html",
    limit: int = 20,
    load: str | None = None,
    device: str = "auto",
    max_tokens: int = 256,
) -> SideBySide:
    """Ask each model each question about each picture, and write the answers as one HTML file.

    models: models, or what `wb.open_model` opens: runs, LLaVA folders, other vision-language models, `MODEL@URL`.
    images: files (pictures, PDF files, videos) or folders of pictures and videos, of which the first `limit` are taken;
    a file of a folder that cannot be read is left out, and a note says why. A model that reads pictures only is shown
    frames of a video. Answers are greedy. Raises, before anything is asked, `DataError` for no model or no picture,
    `ImageError` for a named file that cannot be read, `ModelError` for a model that is nowhere and `DiskError` for an
    `out` that cannot be written; and what opening raises if no model can be opened.
    """
    for name, given in (("models", models), ("images", images), ("questions", questions)):
        if not isinstance(given, (str, Path, Sequence)):
            raise DataError(name, found=kind_of(given), expected="a list of them")
    asked = [questions] if isinstance(questions, str) else list(questions)
    pictures, notes = _pictures([images] if isinstance(images, (str, Path)) else images, limit)
    if not models or not asked:
        found = "no model" if not models else "no question"
        raise DataError("compare-models", found=found, expected="at least one")
    _check(models, Path(out))
    answers: list[Said] = []
    problems: list[WorkbenchError] = []
    names = _names(models)
    frames: dict[str, int] = {}
    with progress("answers", total=len(models) * len(pictures) * len(asked), unit="answer") as bar:
        for name, one in zip(names, models, strict=True):
            try:
                settings: dict[str, Any] = {} if "@http" in str(one) else {"load": load, "device": device}
                model = open_model(one, **settings) if isinstance(one, (str, Path)) else one
            except WorkbenchError as error:
                problems.append(error)
                answers += [Said(name, image.path, text, None, str(error)) for image in pictures for text in asked]
                bar.advance(len(pictures) * len(asked))
                continue
            answers += _ask(model, name, pictures, asked, SamplingOptions(max_tokens=max_tokens), bar)
            frames[name] = frames_read(model)
            if isinstance(one, (str, Path)):
                _let_go(model)
            del model
            gc.collect()  # so that the next has the memory
    if len(problems) == len(models):
        raise problems[0]
    notes += _told_of_films(sum(isinstance(one, Video) for one in pictures), frames)
    values = _values(names, pictures, answers, notes)
    return SideBySide(write_page("side_by_side.html.jinja", Path(out), values), answers, notes)


def _check(models: Sequence[ChatModel | str | Path], out: Path) -> None:
    """Raise now what would come to nothing after other models had answered."""
    if out.is_dir():
        raise DataError(str(out), found="a folder", expected="a file to write, such as models.html")
    check_writable(out)
    check_there(*(one for one in models if isinstance(one, (str, Path)) and "@http" not in str(one)))


def _told_of_films(films: int, frames: dict[str, int]) -> list[str]:
    """What was seen of videos by whom. frames: of a video at most, by each model; 0 of one that reads pictures only."""
    if not films:
        return []
    still_only = [name for name, count in frames.items() if not count]
    readers = [f"{count} by {name}" for name, count in frames.items() if count]
    told = [f"{told_of_frames(films)} by {', '.join(still_only)}"] if still_only else []
    told += [f"frames of a video seen at most: {', '.join(readers)}"] if readers else []
    return [*told, "the page shows a video by its first frame"]


def _pictures(places: Sequence[str | Path], limit: int) -> tuple[list[Media], list[str]]:
    """At most `limit`, and a note on each file of a folder that cannot be read."""
    found: list[Media] = []
    left: list[str] = []
    endings = picture_files.SUFFIXES | video_files.SUFFIXES
    for place in map(Path, places):
        inside = place.is_dir()
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in endings) if inside else [place]
        before = len(found)
        for file in files:
            if len(found) >= limit:
                break
            try:
                found += attached_for(file)
            except ImageError as problem:
                if not inside:
                    raise
                left.append(f"left out: {problem}")
        if inside and len(found) == before < limit:
            raise DataError(str(place), found="no picture", expected="a folder with pictures, or picture files")
    return found[:limit], left


def _names(models: Sequence[ChatModel | str | Path]) -> list[str]:
    """What each is called on the page, no two alike."""
    names: list[str] = []
    for one in models:
        whole = str(one) if isinstance(one, (str, Path)) else one.name
        short = whole.partition("@http")[0].rstrip("/").rpartition("/")[2] or whole
        names.append(short if short not in names else f"{short} ({len(names) + 1})")
    return names


def _ask(
    model: ChatModel, name: str, pictures: list[Media], asked: list[str], options: SamplingOptions, bar: Any
) -> list[Said]:
    jobs = [(image, text) for image in pictures for text in asked]
    made: list[Said] = []
    for begin in range(0, len(jobs), BATCH):
        batch = jobs[begin : begin + BATCH]
        began = time.perf_counter()
        try:
            texts = [answer.text for answer in model.reply_batch([_question(model, *job) for job in batch], options)]
            said: list[tuple[str | None, str | None]] = [(text.strip(), None) for text in texts]
        except WorkbenchError:  # one of them; which one is found out by asking each alone
            said = [_alone(model, job, options) for job in batch]
        each = (time.perf_counter() - began) / len(batch)
        made += [Said(name, image.path, text, *told, each) for (image, text), told in zip(batch, said, strict=True)]
        bar.advance(len(batch))
    return made


def _let_go(model: ChatModel) -> None:
    """End what a model of this process keeps running."""
    close = getattr(model, "close", None)
    if close is not None and not inspect.iscoroutinefunction(close):
        close()


def _alone(model: ChatModel, job: tuple[Media, str], options: SamplingOptions) -> tuple[str | None, str | None]:
    try:
        return model.reply(_question(model, *job), options).text.strip(), None
    except WorkbenchError as error:
        return None, str(error)


def _question(model: ChatModel, image: Media, text: str) -> Conversation:
    return seen_by(model, Conversation(new_id("side by side", image.path, text), (Message("user", (image, text)),)))


def _values(names: list[str], pictures: list[Media], answers: list[Said], notes: list[str]) -> dict[str, Any]:
    held = {(one.image, one.question, one.model): one for one in answers}
    asked = list(dict.fromkeys(one.question for one in answers))
    shown = [
        {
            "name": Path(image.path).name + (", a video" if isinstance(image, Video) else ""),
            "source": picture_source(video_files.still(open_file(image)), SIDE),
            "questions": [(text, [held[image.path, text, name] for name in names]) for text in asked],
        }
        for image in pictures
    ]
    seconds = {name: [one.seconds for one in answers if one.model == name and one.error is None] for name in names}
    means = {name: sum(each) / len(each) if each else None for name, each in seconds.items()}
    films = sum(isinstance(image, Video) for image in pictures)
    counts = [(len(pictures) - films, "picture"), (films, "video")]
    shown_of = " and ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count)
    return {
        "title": f"{len(names)} model{'s' * (len(names) != 1)} about {shown_of}",
        "subtitle": "; ".join(
            [f"greedy answers to {len(asked)} question(s) about each, asked by workbench {__version__}", *notes]
        ),
        "names": names,
        "seconds": means,
        "pictures": shown,
    }
