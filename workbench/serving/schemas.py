"""The shapes of requests and responses, as OpenAI's chat completions have them; the server's schema is made of these.

Knows: fields, their ranges, and which of OpenAI's fields change an answer in a way no model here can: those are refused
by name, while unknown and harmless ones are ignored. Does not know: conversations, models, or HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

HOTTEST = 2.0
"""The highest temperature."""
_UNSUPPORTED = (
    "tools", "tool_choice", "functions", "function_call", "logit_bias", "presence_penalty", "frequency_penalty",
    "audio", "prediction", "web_search_options", "best_of", "echo", "prompt", "suffix", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar", "structured_outputs",
)  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, 0, False, "", "none", "auto", [], {})
"""Values under which an unsupported field asks for nothing."""


def _encodable(text: str) -> str:
    """JSON can write half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "half of a surrogate pair is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TextPart(_Part):
    type: Literal["text"]
    text: Text


class ImageUrl(_Part):
    url: str
    """`data:image/png;base64,...`; https where the server was started with domains that it may fetch from."""
    detail: Literal["auto", "low", "high"] | None = None
    """Taken as a wish: a model with one image size sees that size."""


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Part):
    url: str
    """`data:video/mp4;base64,...`"""


class VideoPart(_Part):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class SystemMessage(_Part):
    role: Literal["system", "developer"]
    content: Text | list[TextPart]


class UserMessage(_Part):
    role: Literal["user"]
    content: Text | list[Part]


class AssistantMessage(_Part):
    role: Literal["assistant"]
    content: Text | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _no_calls(cls, given: Any) -> Any:
        return _refuse(given, ("tool_calls", "function_call", "audio"))


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class TextFormat(BaseModel):
    type: Literal["text"]


class ObjectFormat(BaseModel):
    type: Literal["json_object"]


class SchemaFormat(BaseModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A request for one or several answers to a conversation."""

    model_config = ConfigDict(extra="ignore")

    model: Text
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    """The older name of `max_completion_tokens`, which is taken where both are given."""
    temperature: float | None = Field(None, ge=0, le=HOTTEST)
    """Left out it is 0, not 1: the likeliest answer, as `workbench chat` gives it."""
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    modalities: list[str] | None = None
    top_k: int | None = Field(None, ge=-1, le=2**31)
    """Not OpenAI's; as vLLM has it. -1 and 0 keep all."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        return _refuse(given, _UNSUPPORTED)

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        faults = (
            (self.stream_options is not None and not self.stream, "stream_options", "is for streams only"),
            (self.top_logprobs is not None and not self.logprobs, "top_logprobs", "needs logprobs: true"),
            (any(each != "text" for each in self.modalities or ()), "modalities", "can only be ['text']"),
            (len(self.stops) > 16 or not all(self.stops), "stop", "takes up to 16 texts, none of them empty"),
        )
        for wrong, name, told in faults:
            if wrong:
                raise PydanticCustomError("fields", "{told}", {"param": name, "told": told})
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _refuse(given: Any, names: tuple[str, ...]) -> Any:
    if isinstance(given, dict):
        for name in names:
            if not any(given.get(name) == nothing for nothing in _NOTHING):
                raise PydanticCustomError("unsupported", "is not supported by this server", {"param": name})
    return given


# --- responses ------------------------------------------------------------------------------------------------


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob] | None
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    cached_tokens: int = 0
    """Those of the prompt that did not have to be computed again."""
    image_tokens: int = 0
    """Those of the prompt that stand for pictures and videos."""
    audio_tokens: int = 0


class CompletionDetails(BaseModel):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int
    """Image tokens included."""
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "workbench"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "stuck", "failing", "stopping"]
    running: int
    waiting: int


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
