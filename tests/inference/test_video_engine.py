"""Models that read videos answer about one through engine, chat and server as transformers' generate does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.asking import PATCH, SIZE, byte_tokenizer, greedy
from tests.inference.test_next_engine import SHORT
from tests.serving.requests_made import uri
from tests.videos import moving, painted
from workbench.conversation import Conversation, Image, Message, Video
from workbench.curation.splits import split
from workbench.data.adopt import adopt
from workbench.data.dataset import Dataset
from workbench.data.video import Film
from workbench.errors import ImageError, ModelError
from workbench.evaluation import asking
from workbench.evaluation.task import evaluate
from workbench.inference.attachments import open_file
from workbench.inference.chat import Chat
from workbench.inference.engine import Engine
from workbench.inference.relevance import Relevance
from workbench.inference.whole_pass import lay_out, likelihoods, slots
from workbench.model.anyres import ONEVISION_GRIDS, pinpoints_of
from workbench.model.film import film_size
from workbench.model.joint import CLASSES, tiling_of
from workbench.model.llava import Llava
from workbench.model.renderer import Renderer
from workbench.model.tiles import AnyResMode
from workbench.model.tiling import PADDED
from workbench.serving.limits import Limits
from workbench.serving.run import Server

FRAMES = 6
SEEDS = {"llava_next_video": 0, "llava_onevision": 1}
"""Of weights whose answers differ from film to film."""


SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = SHAPE | {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512}


def _next(**marks: int) -> tuple[Any, Any]:
    """A LLaVA-NeXT-Video, and how its pixels are made."""
    vision, text = CLIPVisionConfig(**SHAPE, image_size=SIZE, patch_size=PATCH), LlamaConfig(**WORDS)
    sight = {"image_grid_pinpoints": pinpoints_of(SIZE), "image_seq_length": (SIZE // PATCH) ** 2}
    config = LlavaNextVideoConfig(vision_config=vision, text_config=text, **sight, **marks)
    return config, {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


def _onevision(**marks: int) -> tuple[Any, Any]:
    """A LLaVA-OneVision, whose frames are an odd number of tokens wide, as those of the published ones."""
    side = 3 * PATCH
    vision, text = SiglipVisionConfig(**SHAPE, image_size=side, patch_size=PATCH), Qwen2Config(**WORDS)
    sight = {"image_grid_pinpoints": pinpoints_of(side, ONEVISION_GRIDS), "image_seq_length": 9}
    sight |= {"vision_aspect_ratio": "anyres_max_1"}
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, **sight, **marks)
    return config, {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module", params=[_next, _onevision], ids=["next", "onevision"])
def llava(request: pytest.FixtureRequest) -> Llava:
    """Weights are drawn wide, so that what is likely depends on every token and pixel and nothing is nearly tied."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    marks = {f"{part}_token_index": tokenizer.convert_tokens_to_ids(f"<{part}>") for part in ("image", "video")}
    config, settings = request.param(**marks)
    torch.manual_seed(SEEDS[config.model_type])
    model = CLASSES[config.model_type](config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight *= 4
    model.model.image_newline *= 8
    mode = AnyResMode(tiling_of(config, FRAMES), settings)  # type: ignore[arg-type]
    renderer = Renderer(tokenizer, "tiny", videos=True)
    return Llava(model, tokenizer, renderer, mode, {}, torch.device("cpu"), torch.float32)


@pytest.fixture
def tokens(llava: Llava) -> int:
    """Of a film of which all frames are shown that may be."""
    return llava.tiling.tokens(film_size(FRAMES))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.mp4`, `b.mp4`: as long and large; `short.mp4` of two frames; `c.png`, `d.png`."""
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate("ab"):
        moving(folder / f"{name}.mp4", 20, seed=seed)
    moving(folder / "short.mp4", 2)
    for number, name in enumerate("cd", 3):
        painted(number).save(folder / f"{name}.png")
    return folder


def about(files: Path, text: str, *names: str) -> Conversation:
    media = [(Image if name.endswith("png") else Video)(str(files / name)) for name in names]
    return Conversation(text, (Message("user", (*media, text)),))


def generated(llava: Llava, conversation: Conversation) -> tuple[int, ...]:
    """What transformers writes: its own tower pass over the frames, its own pooling, `<video>` where videos are."""
    rendered, inputs, ids = llava.renderer.prompt(conversation), {}, []
    waiting = [(media, llava.show(open_file(media), rendered.pictures)) for media in rendered.images]
    films = [shown.tiles for media, shown in waiting if isinstance(media, Video)]
    stills = [(open_file(media).size, shown.tiles) for media, shown in waiting if not isinstance(media, Video)]
    if films:
        inputs["pixel_values_videos"] = torch.stack(films)
    if stills:
        sizes = torch.tensor([[height, width] for (width, height), _ in stills])
        inputs |= {"pixel_values": torch.stack([tiles for _, tiles in stills]), "image_sizes": sizes}
        if llava.tiling.mixes:
            inputs["batch_num_images"] = torch.tensor([len(stills)])
    config = llava.model.config
    for id in rendered.ids:
        if id >= 0:
            ids.append(id)
            continue
        media, shown = waiting.pop(0)
        mark = config.video_token_id if isinstance(media, Video) else config.image_token_id
        ids += [mark] * llava.tiling.tokens(shown.size)
    return greedy(llava, torch.tensor([ids]), SHORT.max_tokens, **inputs)


def test_answers_are_those_of_generate_alone_and_together(llava: Llava, files: Path) -> None:
    conversations = [about(files, text, *names)
                     for names in (["a.mp4"], ["b.mp4"], ["short.mp4"], ["c.png"], ["a.mp4", "c.png"],
                               ["a.mp4", "b.mp4"], ["c.png", "a.mp4", "d.png"], [])
                     for text in ("what moves?", "and how many cubes are there?")]  # fmt: skip
    later = conversations[0].add("assistant", "a cube").add("user", "and here?", Image(str(files / "c.png")))
    conversations.append(later)
    expected = [generated(llava, one) for one in conversations]
    assert len(set(expected)) > 12, "else this test would show nothing"
    with Engine(llava) as engine:
        assert engine.frames == FRAMES
        assert [engine.reply(one, SHORT).ids for one in conversations] == expected
    with Engine(llava) as engine:
        assert [answer.ids for answer in engine.reply_batch(conversations, SHORT)] == expected


def test_a_second_question_about_a_film_finds_it_and_another_film_is_never_taken_for_it(
    llava: Llava, files: Path, tokens: int
) -> None:
    first, second = about(files, "what moves?", "a.mp4"), about(files, "what colour is it?", "a.mp4")
    other = about(files, "what moves?", "b.mp4")
    with Engine(llava) as engine:
        answers = [engine.reply(one, SHORT) for one in (first, second, other, first)]
        found = [(answer.ids, answer.usage.cached_tokens) for answer in answers]
    assert [ids for ids, _ in found] == [generated(llava, one) for one in (first, second, other, first)]
    assert found[0][0] != found[2][0], "else this test would show nothing"
    assert found[1][1] >= tokens and found[3][1] >= tokens and found[2][1] < tokens
    assert answers[0].usage.image_tokens == tokens


def test_a_film_counts_by_the_frames_it_has(llava: Llava, files: Path) -> None:
    short = about(files, "what moves?", "short.mp4")
    with Engine(llava) as engine:
        assert engine.reply(short, SHORT).usage.image_tokens == llava.tiling.tokens(film_size(2))
    rendered = llava.renderer.prompt(about(files, "x", "short.mp4", "c.png"))
    layout = lay_out(llava, rendered, open_file)
    assert slots(llava, rendered, open_file) == list(map(llava.tiling.tokens, layout.sizes))
    assert layout.sizes == ((-2, 0), (64, 48)), "a picture beside a film is alone"
    rendered = llava.renderer.prompt(about(files, "x", "c.png", "short.mp4", "d.png"))
    counts = slots(llava, rendered, open_file)
    assert counts == list(map(llava.tiling.tokens, lay_out(llava, rendered, open_file).sizes))
    if llava.tiling.seen((64, 48), 2) == PADDED:
        assert counts[0] == counts[2] == llava.tiling.each + 1


def test_a_pass_over_a_conversation_gives_each_token_its_likelihood(llava: Llava, files: Path, tokens: int) -> None:
    conversation = about(files, "what moves?", "a.mp4").add("assistant", "a cube")
    rendered = llava.renderer.render(conversation)
    ids, _ = llava.renderer.expand(rendered, [tokens], llava.model.config.video_token_id)
    shown = llava.show(Film(files / "a.mp4"))
    with torch.no_grad():
        logits = llava.model(input_ids=torch.tensor([ids]), pixel_values_videos=shown.tiles[None]).logits[0]
    found = likelihoods(llava, rendered, open_file)
    last = logits[-2].log_softmax(-1)[ids[-1]]
    assert found[-1] is not None and found[-1].logprob == pytest.approx(float(last), abs=1e-4)


def test_a_map_is_of_a_picture(llava: Llava, files: Path) -> None:
    with pytest.raises(ModelError, match="x: found a video; expected a picture"):
        Relevance(llava, about(files, "x", "a.mp4").add("assistant", "yes"), open_file)


def test_what_opens_pictures_only_says_so(llava: Llava, files: Path) -> None:
    told = "a.mp4: found a video, where only pictures are opened"
    with Engine(llava, open_image=lambda image: painted(1)) as engine, pytest.raises(ImageError, match=told):
        engine.reply(about(files, "x", "a.mp4"), SHORT)


def test_a_chat_shows_a_film_to_who_reads_it_and_saves_it(llava: Llava, files: Path, tmp_path: Path) -> None:
    said: list[str] = []
    notes: list[str] = []
    with Engine(llava) as engine:
        chat = Chat(engine, options=SHORT, say=said.append, note=notes.append)
        chat.options = replace(SHORT, max_tokens=24)  # so long that some of it is text
        assert all(chat.line(one) for one in (f"/image {files / 'a.mp4'}", "what moves?"))
        assert notes[0] == "a.mp4, a video: ask about it" and not chat.failed, notes
        assert chat.conversation.media == (Video(str(files / "a.mp4"), root=""),)
        chat.line(f"/save {tmp_path / 'talk.json'}")
    [record] = json.loads((tmp_path / "talk.json").read_text())
    assert record["video"] == "talk-pictures/0001.mp4"
    assert (tmp_path / record["video"]).read_bytes() == (files / "a.mp4").read_bytes()
    assert record["conversations"][0]["value"] == "<image>\nwhat moves?"


def test_a_video_is_evaluated_and_taken_into_a_dataset(llava: Llava, files: Path, tmp_path: Path) -> None:
    asked = about(files, "what moves?", "a.mp4").add("assistant", "a cube")
    added = adopt(tmp_path / "data", asked, open_file)
    dataset = Dataset.open(tmp_path / "data")
    [media] = added.media
    assert dataset.conversations() == [added]
    assert dataset.images.select("root", "path", "media", "status").rows() == [("media", media.path, "video", "ok")]
    assert (media.root, Path(media.path).suffix) == ("media", ".mp4")
    assert dataset.resolve(media).read_bytes() == (files / "a.mp4").read_bytes()
    with Engine(llava, name="film") as engine:
        [row] = evaluate(engine, dataset, split=None, max_tokens=SHORT.max_tokens).rows.to_dicts()
    decode = llava.tokenizer.decode(generated(llava, asked.prompt), skip_special_tokens=True)
    assert row["answer"].strip() == decode.strip()
    split(dataset, {"train": 0, "val": 0, "test": 1})
    with Engine(llava, name="film") as engine:
        results = evaluate(engine, dataset, split="test", max_tokens=SHORT.max_tokens)
    [row] = results.rows.to_dicts()
    assert (row["image"], row["root"]) == (media.path, "media"), "a row names the video it is about"
    assert results.picture(row).tobytes() == Film(files / "a.mp4").frames(1)[0].tobytes()


def test_questions_about_one_video_share_it_and_are_answered_as_each_alone(
    llava: Llava, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "WORTH", 1)
    talks = [(text, name) for name in ("a.mp4", "b.mp4") for text in ("what moves?", "where to?", "why, then?")]
    for number, (text, name) in enumerate(talks):
        asked = replace(about(files, text, name).add("assistant", "a cube"), id=str(number))
        adopt(tmp_path / "data", asked, open_file)
    with Engine(llava, name="film") as engine:
        results = evaluate(engine, Dataset.open(tmp_path / "data"), split=None, max_tokens=SHORT.max_tokens)
    answers = {row["id"]: row["answer"] for row in results.rows.to_dicts()}
    for number, (text, name) in enumerate(talks):
        alone = llava.tokenizer.decode(generated(llava, about(files, text, name)), skip_special_tokens=True)
        assert answers[str(number)] == alone.strip(), (text, name)


# --- the server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def client(llava: Llava) -> Iterator[OpenAI]:
    with Engine(llava, name="film") as engine, Server(engine, port=0) as server:
        yield OpenAI(base_url=server.url, api_key="none", max_retries=0)


def told(text: str, data: bytes) -> list[Any]:
    part = {"type": "video_url", "video_url": {"url": uri(data, "video/mp4")}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def test_the_server_reads_a_film_as_one_and_counts_its_tokens(
    client: OpenAI, llava: Llava, files: Path, tokens: int
) -> None:
    texts, cached = [], []
    for name in ("a.mp4", "b.mp4", "a.mp4"):
        asked = told("what moves?", (files / name).read_bytes())
        made = client.chat.completions.create(model="film", messages=asked, max_tokens=SHORT.max_tokens)
        details: Any = made.usage.prompt_tokens_details
        assert details.image_tokens == tokens
        texts.append(made.choices[0].message.content)
        cached.append(details.cached_tokens)
    expected = [generated(llava, about(files, "what moves?", name)) for name in ("a.mp4", "b.mp4")]
    decode = lambda ids: llava.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)  # noqa: E731
    assert texts == [decode(expected[0]), decode(expected[1]), decode(expected[0])]
    assert cached[1] < tokens <= cached[2]


def test_the_server_refuses_a_film_that_is_none(client: OpenAI, files: Path) -> None:
    whole = (files / "a.mp4").read_bytes()
    refused = ((b"no film", " is not a video"), (whole[:200], ": found a video that cannot be read"),
               ((files / "c.png").read_bytes(), " is a picture .PNG., not a video; send it as image_url"))  # fmt: skip
    for data, expected in refused:
        with pytest.raises(BadRequestError, match=rf"messages\[0\].content\[0\].video_url.url{expected}"):
            client.chat.completions.create(model="film", messages=told("x", data))


def test_the_server_refuses_a_film_whose_frames_are_too_large_together(llava: Llava, files: Path) -> None:
    limits = Limits(pixels=10_000)  # six frames of 64 x 48 have more
    with Engine(llava, name="film") as engine, Server(engine, port=0, limits=limits) as server:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(BadRequestError, match="has frames of 3,072 pixels; at most 10,000 are taken of all"):
            client.chat.completions.create(model="film", messages=told("x", (files / "a.mp4").read_bytes()))
