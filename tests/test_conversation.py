"""The legal shape of a conversation, and that every exchange shape gives back what went in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.conversation import (
    Conversation,
    Image,
    Message,
    Video,
    check_conversation,
    from_chat,
    from_llava,
    from_record,
    new_id,
    to_chat,
    to_llava,
    to_record,
)
from workbench.errors import ConversationError

CAT = Image("cats/1.png")


def talk(*turns: tuple[str, Any], **fields: Any) -> Conversation:
    return Conversation("c1", tuple(Message(role, content) for role, content in turns), **fields)


# --- strategies -----------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() and "<image>" not in text
)
names = st.text("abcdefgh0123456789_/-. é", min_size=1, max_size=12)
sizes = st.none() | st.integers(1, 10_000)
images = st.builds(Image, names, names, sizes, sizes, st.none() | st.just("0" * 64))
videos = st.builds(Video, names, names, st.none() | st.just("1" * 64))


@st.composite
def conversations(draw: st.DrawFn, media: st.SearchStrategy[Any] = images | videos, in_front: bool = False) -> Any:
    messages = [Message("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        shown = draw(st.lists(media, max_size=2))
        text = draw(words)
        parts = [*shown, text] if in_front else draw(st.permutations([*shown, text, draw(words)]))
        messages += [Message("user", tuple(parts)), Message("assistant", draw(words))]
    if draw(st.booleans()):
        messages.pop()
    plain = st.dictionaries(words, st.none() | st.integers() | words | st.lists(words, max_size=2), max_size=3)
    split = draw(st.sampled_from([None, "train", "val", "test"]))
    return Conversation(draw(names), tuple(messages), split, draw(st.none() | words), draw(plain), draw(plain))


# --- laws -----------------------------------------------------------------------------------------------------


@given(conversations())
def test_chat_shape_gives_back_every_part(conversation: Conversation) -> None:
    again = from_chat(json.loads(json.dumps(to_chat(conversation))), id=conversation.id)
    assert again.messages == conversation.messages
    media = [part for message in again.messages for part in message.media]
    assert [vars(part) for part in media] == [vars(part) for m in conversation.messages for part in m.media]


@given(conversations())
def test_record_gives_back_every_field(conversation: Conversation) -> None:
    again = from_record(json.loads(json.dumps(to_record(conversation))))
    assert again == conversation
    assert again.metadata == conversation.metadata


@given(conversations(st.builds(Image, names), in_front=True))
def test_llava_shape_gives_back_the_messages(conversation: Conversation) -> None:
    stripped = tuple(
        replace(message, content=(*message.media, message.text.strip("\n"))) if message.media else message
        for message in conversation.messages
    )
    again = from_llava(json.loads(json.dumps(to_llava(replace(conversation, messages=stripped)))))
    assert again.messages == stripped
    assert again.source["foreign_id"] == conversation.source.get("foreign_id", conversation.id)


@given(conversations())
def test_generated_conversations_are_legal_and_hashable(conversation: Conversation) -> None:
    assert check_conversation(conversation) is conversation
    assert len({conversation, replace(conversation, metadata={"seen": True})}) == 1


# --- LLaVA records --------------------------------------------------------------------------------------------

RECORD_558K = {
    "id": "004539375",
    "image": "00453/004539375.jpg",
    "conversations": [
        {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
        {"from": "gpt", "value": "select luxury furniture 3 - inch gel memory foam mattress topper"},
    ],
}
RECORD_665K = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
    ],
}


def record(value: str, **files: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat jumps."}]
    return {"id": "v1", **files, "conversations": turns}


def test_a_record_about_a_video_has_either_mark() -> None:
    told = record("<image>\nWhat happens?", video="clips/1.mp4")
    made = from_llava(told, root="images")
    assert made.messages[0].content == (Video("clips/1.mp4", "images"), "What happens?")
    assert to_llava(made) == told, "as LLaVA's own code reads it"
    assert from_llava(record("What happens?\n<video>", video="clips/1.mp4")).messages == made.messages


def test_a_record_about_images_and_videos_names_each_by_its_mark() -> None:
    told = record("<video>\n<image>\n<video>\nSame?", image="a.jpg", video=["1.mp4", "2.mp4"])
    made = from_llava(told)
    assert [part.path for part in made.media] == ["1.mp4", "a.jpg", "2.mp4"] and to_llava(made) == told
    assert [type(part) for part in made.media] == [Video, Image, Video]


@pytest.mark.parametrize(
    ("value", "files", "told"),
    [
        ("<image>\n<image>\nSame?", {"video": "1.mp4"}, "2 <image> marks and 1 videos"),
        ("What happens?", {"video": "1.mp4"}, "0 <image> marks and 1 videos"),
        ("<video>\nSame?", {"video": ["1.mp4", "2.mp4"]}, "1 <video> marks and 2 videos"),
        ("<video>\nSame?", {"video": "1.mp4", "image": "a.jpg"}, "0 <image> marks and 1 images"),
    ],
)
def test_marks_and_videos_that_differ_in_number_are_refused(value: str, files: dict[str, Any], told: str) -> None:
    with pytest.raises(ConversationError, match=f"record 'v1': found {told}"):
        from_llava(record(value, **files))


def test_without_videos_their_mark_is_text() -> None:
    assert from_llava(record("What is a <video> tag?")).messages[0].text == "What is a <video> tag?"


def test_a_record_of_the_665k_mix_comes_back_equal() -> None:
    assert to_llava(from_llava(RECORD_665K)) == RECORD_665K


def test_a_mark_behind_the_text_moves_to_the_front() -> None:
    asked = from_llava(RECORD_558K).messages[0]
    assert asked.content == (Image("00453/004539375.jpg"), "Render a clear and concise summary of the photo.")


def test_a_record_without_an_image_or_an_id_is_text() -> None:
    made = from_llava({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello\n"}]})
    assert made.images == () and made.reference == "Hello\n" and "image" not in to_llava(made)


def test_the_same_record_gets_the_same_id_and_another_another() -> None:
    other = {**RECORD_665K, "image": "other.jpg"}
    assert from_llava(RECORD_665K).id == from_llava(dict(RECORD_665K)).id != from_llava(other).id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "1 <image> marks and 0 images"),
        ({"image": ["a.png", "b.png"]}, "1 <image> marks and 2 images"),
        ({"conversations": "hello"}, "no 'conversations' list"),
        (
            {"conversations": [{"from": "bot", "value": "<image>"}]},
            "message 0: found from 'bot'; expected human or gpt",
        ),
    ],
)
def test_a_broken_record_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        from_llava({**RECORD_665K, **change})
    assert message in str(caught.value) and "000000033471" in str(caught.value)


# --- legal shape ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conversation",
    [
        talk(("user", "Hi")),
        talk(("system", "Be brief."), ("user", (CAT, "What?")), ("assistant", "A cat.")),
        talk(("user", (CAT,)), ("assistant", "A cat."), ("user", "Sure?"), split="val"),
    ],
)
def test_legal(conversation: Conversation) -> None:
    assert check_conversation(conversation) is conversation


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (Conversation("", (Message("user", "Hi"),)), "found id ''; expected a text that is not empty"),
        (talk(("user", "Hi"), split="dev"), "c1: found split 'dev'; expected train, val, test or none"),
        (talk(), "c1: found no user message"),
        (talk(("system", "Be brief.")), "c1: found no user message"),
        (talk(("user", "Hi"), ("bot", "Hello")), "c1, message 1: found role 'bot'"),
        (talk(("user", "Hi"), ("system", "Be brief.")), "c1, message 1: found a system message"),
        (talk(("assistant", "Hello"), ("user", "Hi")), "c1, message 0: found assistant; expected user"),
        (talk(("user", "Hi"), ("user", "Hi?")), "c1, message 1: found user; expected assistant"),
        (talk(("user", " \n")), "c1, message 0: found an empty user message"),
        (talk(("user", "Hi"), ("assistant", "")), "c1, message 1: found an empty assistant message"),
        (talk(("user", "Draw"), ("assistant", (CAT, "here"))), "c1, message 1: found media in a"),
    ],
)
def test_an_illegal_shape_names_the_message(conversation: Conversation, message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        check_conversation(conversation)
    assert message in str(caught.value)


# --- using it -------------------------------------------------------------------------------------------------


def test_prompt_and_reference_are_the_last_question_and_its_answer() -> None:
    whole = talk(("user", (CAT, "What?")), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes."))
    assert whole.prompt.messages == whole.messages[:3]
    assert whole.reference == "Yes."
    assert whole.prompt.reference is None and whole.prompt.id == whole.id
    assert whole.images == (CAT,)


def test_a_prompt_needs_a_question() -> None:
    with pytest.raises(ConversationError, match="c1: found no user message"):
        _ = talk(("system", "Be brief.")).prompt


def test_add_grows_a_copy() -> None:
    first = talk(("user", "Hi"))
    assert first.add("assistant", "Hello").messages[1] == Message("assistant", ("Hello",))
    assert len(first.messages) == 1


def test_content_may_be_a_text_an_image_or_a_list() -> None:
    assert Message("user", "Hi").content == ("Hi",)  # type: ignore[arg-type]
    assert Message("user", CAT).content == (CAT,)  # type: ignore[arg-type]
    assert Message("user", [CAT, "Hi"]).text == "Hi"  # type: ignore[arg-type]


def test_what_was_measured_of_an_image_does_not_change_which_image_it_is() -> None:
    assert Image("cats/1.png", width=10, hash="0") == CAT
    assert Image("cats/1.png", root="other") != CAT


def test_new_ids_are_stable_for_parts_and_random_without() -> None:
    assert new_id("a", 1) == new_id("a", 1) != new_id("a1")
    assert len(new_id()) == 20 and new_id() != new_id()


def test_an_unknown_part_is_refused_with_the_conversation() -> None:
    with pytest.raises(ConversationError, match="c9: found a part of type 'audio'"):
        from_chat([{"role": "user", "content": [{"type": "audio"}]}], id="c9")
