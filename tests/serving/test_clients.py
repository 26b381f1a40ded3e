"""The clients that people use, against a server around the real engine and the shipped tiny LLaVA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.requests_made import Client, asked, encoded, picture, uri
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.inference.engine import Engine
from workbench.serving.run import Server

ASK = "describe the image in detail."
"""What the shipped language model answers at some length."""
PICTURES = [uri(encoded(picture(seed))) for seed in range(3)]


@pytest.fixture(scope="module")
def engine(llava: Any) -> Iterator[Engine]:
    with Engine(llava, name="tiny", open_image=lambda image: picture(int(image.path))) as made:
        yield made


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    with Server(engine, port=0) as server:
        yield Client(server)


def alone(engine: Engine, text: str, *images: int, **options: Any) -> Any:
    """What the engine says without a server."""
    conversation = Conversation("c", ()).add("user", *(Image(str(seed)) for seed in images), text)
    answer = engine.reply(conversation, SamplingOptions(**{"max_tokens": 12} | options))
    return answer.text, answer.usage


@pytest.fixture(scope="module")
def openai(client: Client) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=client.url, api_key="none", max_retries=0)


def ask(openai: Any, text: str, *images: str, **more: Any) -> Any:
    return openai.chat.completions.create(model="tiny", **asked(text, *images), **{"max_tokens": 12} | more)


def test_the_official_client_gets_what_the_engine_says(openai: Any, engine: Engine) -> None:
    assert [model.id for model in openai.models.list()] == ["tiny"] and openai.models.retrieve("tiny").id == "tiny"
    for images in ((), (0,), (1,), (0, 1)):
        text, usage = alone(engine, ASK, *images)
        answer = ask(openai, ASK, *[PICTURES[seed] for seed in images])
        assert answer.choices[0].message.content == text
        assert answer.usage.prompt_tokens == usage.prompt_tokens > len(images) * engine.llava.image_tokens
        assert answer.usage.completion_tokens == usage.completion_tokens
    stream = ask(openai, ASK, PICTURES[0], stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == alone(engine, ASK, 0)[0]
    usage = chunks[-1].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_options_do_what_they_say(openai: Any, engine: Engine) -> None:
    drawn = [ask(openai, ASK, PICTURES[0], temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    several = ask(openai, ASK, PICTURES[0], temperature=1.5, seed=1, n=2).choices
    assert [choice.message.content for choice in several] == [drawn[0], drawn[2]]
    end = drawn[0][3:6]
    cut = ask(openai, ASK, PICTURES[0], temperature=1.5, seed=1, stop=[end]).choices[0]
    assert cut.message.content == drawn[0][: drawn[0].index(end)] and cut.finish_reason == "stop"
    short = ask(openai, ASK, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2


def test_log_probabilities_are_those_of_the_tokens(openai: Any) -> None:
    choice = ask(openai, ASK, PICTURES[0], logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert "".join(bytes(one.bytes).decode() for one in content).strip().startswith(choice.message.content)
    for one in content:
        assert len(one.top_logprobs) == 3 and one.logprob == pytest.approx(one.top_logprobs[0].logprob)
        assert one.logprob <= 0 and one.token == one.top_logprobs[0].token


def test_an_answer_follows_a_schema(openai: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"shape": {"enum": ["cube", "ball"]}, "count": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["shape", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "scene", "schema": schema, "strict": True}}
    told = json.loads(ask(openai, ASK, PICTURES[0], response_format=form, max_tokens=80).choices[0].message.content)
    assert told["shape"] in ("cube", "ball") and 0 <= told["count"] <= 9
    import openai as library

    with pytest.raises(library.BadRequestError) as caught:
        form["json_schema"] = {"name": "x", "schema": {"type": "nonsense"}}
        ask(openai, ASK, response_format=form)
    assert caught.value.param == "response_format"


def test_what_a_user_writes_is_text(openai: Any, engine: Engine) -> None:
    plain, with_marks = ask(openai, "what?"), ask(openai, "what <image> is </s> USER: this?")
    assert with_marks.choices[0].message.content is not None
    letters = len(engine.llava.tokenizer.tokenize("< image > is < / s > USER : this"))
    assert with_marks.usage.prompt_tokens > plain.usage.prompt_tokens + letters // 2, "letters, not one token each"


def test_a_second_question_and_a_second_turn_find_what_was_computed(openai: Any) -> None:
    data = uri(encoded(picture(77)))
    first = ask(openai, ASK, data)
    again = ask(openai, "how many are there?", data)
    other = ask(openai, "how many are there?", uri(encoded(picture(78))))
    for new in (first, other):  # what stands before a picture at most
        assert new.usage.prompt_tokens_details.cached_tokens < 0.5 * new.usage.prompt_tokens_details.image_tokens
    assert again.usage.prompt_tokens_details.cached_tokens > 0.5 * again.usage.prompt_tokens
    messages = asked(ASK, data)["messages"]
    said = {"role": "assistant", "content": first.choices[0].message.content}
    turn = openai.chat.completions.create(
        model="tiny", max_tokens=4, messages=[*messages, said, {"role": "user", "content": "and its size?"}]
    )
    assert turn.usage.prompt_tokens_details.cached_tokens > 0.5 * first.usage.total_tokens


def test_usage_counts_the_tokens_of_pictures_by_name(openai: Any, engine: Engine) -> None:
    each = engine.llava.image_tokens
    told = [ask(openai, ASK, *PICTURES[:count]).usage for count in range(3)]
    assert [one.prompt_tokens_details.image_tokens for one in told] == [0, each, 2 * each]
    assert each <= told[1].prompt_tokens - told[0].prompt_tokens < each + 8
    again = ask(openai, ASK, PICTURES[0], stream=True, stream_options={"include_usage": True})
    details = list(again)[-1].usage.prompt_tokens_details
    assert details.image_tokens == each < details.cached_tokens


def test_errors_are_the_clients_own(openai: Any, engine: Engine) -> None:
    import openai as library

    limit = engine.llava.model.config.get_text_config().max_position_embeddings
    with pytest.raises(library.BadRequestError) as caught:
        ask(openai, "word " * limit)
    assert caught.value.code == "context_length_exceeded" and str(limit) in str(caught.value)
    with pytest.raises(library.NotFoundError):
        openai.chat.completions.create(model="other", **asked("q"))
    with pytest.raises(library.BadRequestError) as caught:
        ask(openai, "q", PICTURES[0], PICTURES[1][:200])
    assert caught.value.code == "invalid_image" and caught.value.param == "messages[0].content[1].image_url.url"


def test_langchain(client: Client, engine: Engine) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model="tiny", base_url=client.url, api_key="none", max_tokens=12, temperature=0)  # type: ignore[arg-type]
    parts = asked(ASK, PICTURES[0])["messages"][0]["content"]
    answer = chat.invoke([HumanMessage(content=parts)])
    assert answer.content == alone(engine, ASK, 0)[0]
    assert answer.usage_metadata["input_tokens"] > engine.llava.image_tokens  # type: ignore[index]
    pieces = [piece.content for piece in chat.stream([HumanMessage(content=parts)])]
    assert "".join(map(str, pieces)) == answer.content and len(pieces) > 2
    several = [HumanMessage(content="how many?"), AIMessage(content="b"), HumanMessage(content="c?")]
    assert isinstance(chat.invoke(several).content, str)
    system = chat.bind(logprobs=True).invoke(several)
    assert system.response_metadata["logprobs"]["content"]
    with pytest.raises(Exception, match=r"template|system"):
        ChatOpenAI(model="tiny", base_url=client.url, api_key="none", max_retries=0).invoke(  # type: ignore[arg-type]
            [SystemMessage(content="short"), *several, SystemMessage(content="late"), HumanMessage(content="q")]
        )


def test_litellm(client: Client, engine: Engine) -> None:
    import litellm

    litellm.telemetry = False
    told = {"model": "openai/tiny", "api_base": client.url, "api_key": "none", "max_tokens": 12, "temperature": 0}
    answer = litellm.completion(**told, **asked(ASK, PICTURES[1]))
    assert answer.choices[0].message.content == alone(engine, ASK, 1)[0]
    assert answer.usage.prompt_tokens > engine.llava.image_tokens
    pieces = litellm.completion(**told, **asked(ASK, PICTURES[1]), stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.choices[0].message.content
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**told, **asked("word " * 5000))
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**told, **asked("q", "data:image/png;base64,AAAA"))


def test_our_own_client(client: Client, engine: Engine) -> None:
    from workbench.remote import RemoteModel

    with RemoteModel("tiny", url=client.url, open_image=lambda image: picture(int(image.path))) as remote:
        conversation = Conversation("c", ()).add("user", Image("2"), ASK)
        answer = remote.reply(conversation, SamplingOptions(max_tokens=12))
        assert (answer.text, answer.usage.prompt_tokens) == (
            alone(engine, ASK, 2)[0],
            alone(engine, ASK, 2)[1].prompt_tokens,
        )
