"""Answers in the shapes of chat completions: whole, or as server-sent events.

Knows: what stands where, what is null, usage, log probabilities, and that a stream ends with `[DONE]`.
Does not know: how answers come about, or who reads them.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from workbench.chat_model import TokenLogprob
from workbench.serving import schemas
from workbench.serving.answering import Piece, Written
from workbench.serving.errors import ApiError

DONE = "data: [DONE]\n\n"


class Shape:
    """The frame of one response: its id, its model, when it began, and whether log probabilities were asked for."""

    def __init__(self, id: str, model: str, *, logprobs: bool) -> None:
        self._frame = {"id": id, "created": int(time.time()), "model": model}
        self._logprobs = logprobs

    def whole(self, written: Sequence[Written]) -> schemas.Completion:
        choices = [
            schemas.Choice(
                index=index,
                message=schemas.AnswerMessage(content=each.text),
                logprobs=self._probabilities(each.logprobs),
                finish_reason="length" if each.finish_reason == "length" else "stop",
            )
            for index, each in enumerate(written)
        ]
        return schemas.Completion(**self._frame, choices=choices, usage=usage(written))  # type: ignore[arg-type]

    async def events(
        self,
        items: AsyncIterator[tuple[int, Piece | Written]],
        count: int,
        *,
        include_usage: bool,
        failed: Callable[[BaseException], ApiError],
    ) -> AsyncIterator[str]:
        """The stream of `count` answers. What fails after its beginning is an event, since the status has gone out."""
        wholes: dict[int, Written] = {}
        told = [0] * count
        usage_of: dict[str, Any] = {"usage": None} if include_usage else {}
        for index in range(count):
            yield self._event(index, {"role": "assistant", "content": "", "refusal": None}, usage_of)
        try:
            async for index, item in items:
                if isinstance(item, Piece):
                    told[index] += len(item.logprobs)
                    delta, probabilities, reason = {"content": item.text}, item.logprobs, None
                else:
                    wholes[index] = item
                    delta, probabilities = {}, item.logprobs[told[index] :]
                    reason = "length" if item.finish_reason == "length" else "stop"
                if delta.get("content") or probabilities or reason:
                    yield self._event(index, delta, usage_of, probabilities, reason)
        except Exception as problem:
            yield f"data: {json.dumps(failed(problem).body)}\n\n"
        else:
            if include_usage:
                yield self._data(
                    {"choices": [], "usage": usage([wholes[index] for index in range(count)]).model_dump()}
                )
        yield DONE

    def _event(
        self,
        index: int,
        delta: Mapping[str, Any],
        more: Mapping[str, Any],
        probabilities: Sequence[TokenLogprob] = (),
        reason: str | None = None,
    ) -> str:
        found = self._probabilities(probabilities) if probabilities else None
        choice = {"index": index, "delta": delta, "logprobs": found and found.model_dump(), "finish_reason": reason}
        return self._data({"choices": [choice], **more})

    def _data(self, told: Mapping[str, Any]) -> str:
        frame = {**self._frame, "object": "chat.completion.chunk", "system_fingerprint": None, "service_tier": None}
        return f"data: {json.dumps(frame | dict(told), ensure_ascii=False)}\n\n"

    def _probabilities(self, tokens: Sequence[TokenLogprob]) -> schemas.Logprobs | None:
        if not self._logprobs:
            return None
        content = [
            schemas.TokenLogprob(
                **_token(one.text, one.logprob), top_logprobs=[_top(text, value) for _, text, value in one.top]
            )
            for one in tokens
        ]
        return schemas.Logprobs(content=content)


def usage(written: Sequence[Written]) -> schemas.Usage:
    """Tokens of all answers to one prompt, which counts once."""
    first = written[0].usage
    completion = sum(each.usage.completion_tokens for each in written)
    return schemas.Usage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=completion,
        total_tokens=first.prompt_tokens + completion,
        prompt_tokens_details=schemas.PromptDetails(cached_tokens=first.cached_tokens, image_tokens=first.image_tokens),
    )


def _top(text: str, logprob: float) -> schemas.TopLogprob:
    return schemas.TopLogprob(**_token(text, logprob))


def _token(text: str, logprob: float) -> dict[str, Any]:
    # JSON has no minus infinity; clients read -9999 as OpenAI's own way to say "as good as impossible".
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}
