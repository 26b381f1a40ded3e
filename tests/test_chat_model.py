"""Answers that are iterated or read whole, options that are checked, and a model that says what it was told."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.chat_model import Answer, ChatModel, Ending, SamplingOptions, ScriptedModel, Usage, as_options
from workbench.conversation import Conversation
from workbench.errors import WorkbenchError

QUESTION = Conversation("q", ()).add("user", "What is this?")


@given(st.text(alphabet="ab \n", max_size=30))
def test_pieces_joined_are_the_text_however_often_it_is_read(text: str) -> None:
    answer = ScriptedModel([text]).reply(QUESTION)
    assert "".join(answer) == text
    assert answer.text == text == "".join(answer)
    assert answer.finish_reason == "stop"


def test_options_are_named_in_a_mapping_too_and_a_misspelled_one_is_told() -> None:
    assert as_options({"temperature": 0.5, "stop": "."}) == SamplingOptions(temperature=0.5, stop=(".",))
    assert as_options(given := SamplingOptions(top_k=3)) is given
    with pytest.raises(WorkbenchError, match=r"options: found 'temprature'; expected .*; did you mean temperature\?"):
        as_options({"temprature": 0.5})
    with pytest.raises(WorkbenchError, match="sampling option top_p: found 7"):
        as_options({"top_p": 7})
    with pytest.raises(WorkbenchError, match="options: found 0.5, of type float; expected SamplingOptions"):
        as_options(0.5)  # type: ignore[arg-type]


def test_an_answer_is_not_computed_before_it_is_read() -> None:
    steps = []

    def write(cancelled: threading.Event):
        for step in ("one", "two"):
            steps.append(step)
            yield step
        return Ending("stop", Usage(3, 2))

    answer = Answer(write)
    assert steps == []
    assert next(iter(answer)) == "one"
    assert steps == ["one"]
    assert answer.usage == Usage(3, 2)
    assert answer.text == "onetwo"


def test_cancel_keeps_what_was_written() -> None:
    answer = ScriptedModel(["one two three four"]).reply(QUESTION)
    pieces = iter(answer)
    assert next(pieces) + next(pieces) == "one two"
    answer.cancel()
    assert answer.text == "one two"
    assert answer.finish_reason == "cancelled"
    assert answer.usage.completion_tokens == 2


def test_an_answer_whose_writing_failed_never_passes_for_a_short_one() -> None:
    def write(cancelled: threading.Event):
        yield "half"
        raise OSError("the model went away")

    answer = Answer(write)
    with pytest.raises(OSError, match="went away"):
        _ = answer.text
    with pytest.raises(WorkbenchError, match="no end"):
        _ = answer.text


def test_max_tokens_and_stop_texts_end_a_scripted_answer() -> None:
    options = SamplingOptions(max_tokens=2)
    answer = ScriptedModel(["one two three"]).reply(QUESTION, options)
    assert (answer.text, answer.finish_reason, answer.usage) == ("one two", "length", Usage(3, 2))
    answer = ScriptedModel(["one two three"]).reply(QUESTION, SamplingOptions(stop=(" three", " two")))
    assert (answer.text, answer.finish_reason) == ("one", "stop")


def test_a_scripted_model_is_a_chat_model_and_remembers_what_it_was_asked() -> None:
    scripted = ScriptedModel(lambda conversation: conversation.messages[-1].text.upper())
    model: ChatModel = scripted
    answers = model.reply_batch([QUESTION, QUESTION.add("assistant", "a cat").add("user", "sure?")])
    assert [answer.text for answer in answers] == ["WHAT IS THIS?", "SURE?"]
    assert [len(conversation.messages) for conversation in scripted.asked] == [1, 3]


def test_a_script_that_is_used_up_says_so() -> None:
    model = ScriptedModel(["only"])
    model.reply(QUESTION)
    with pytest.raises(WorkbenchError, match="question 2; expected at most 1"):
        model.reply(QUESTION)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("max_tokens", 0),
        ("stop", ("",)),
    ],
)
def test_senseless_options_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(WorkbenchError, match=f"sampling option {name}: found .*expected"):
        SamplingOptions(**{name: value})


def test_one_stop_text_may_be_given_as_a_string() -> None:
    assert SamplingOptions(stop="END").stop == ("END",)
