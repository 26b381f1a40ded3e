"""Schemathesis makes requests from the server's own schema, right and wrong ones, and checks every answer by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from workbench.chat_model import ScriptedModel
from workbench.serving.run import Server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
"""Without the check that whatever the schema allows is answered: it cannot say that users and answers alternate."""


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with Server(ScriptedModel(lambda conversation: "ok", name="a"), port=0) as server:
        yield schemathesis.openapi.from_url(f"{server.url.removesuffix('/v1')}/openapi.json")


def operations(schema: Any) -> dict[str, Any]:
    return {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


def test_the_schema_names_every_route(schema: Any) -> None:
    assert set(operations(schema)) == {
        "GET /v1/models",
        "GET /v1/models/{model}",
        "POST /v1/chat/completions",
        "GET /health",
        "GET /metrics",
    }


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        ("GET /v1/models/{model}", GenerationMode.POSITIVE),
        ("GET /health", GenerationMode.POSITIVE),
        ("POST /v1/chat/completions", GenerationMode.POSITIVE),
        ("POST /v1/chat/completions", GenerationMode.NEGATIVE),
    ],
)
def test_every_answer_is_as_the_schema_says(schema: Any, label: str, mode: Any) -> None:
    cases = operations(schema)[label].as_strategy(generation_mode=mode)
    seen: set[int] = set()

    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.data())
    def check(data: Any) -> None:
        case = data.draw(cases)
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = "a"  # else every request ends at the name of the model
            case.body["stream"] = data.draw(st.booleans())
            if data.draw(st.booleans()):  # and many at what roles or data URIs may be
                case.body["messages"] = [{"role": "user", "content": data.draw(st.text(min_size=1))}]
        wrong = [negative_data_rejection] if mode is GenerationMode.NEGATIVE else []
        seen.add(case.call_and_validate(checks=CHECKS + wrong).status_code)

    check()
    if label.startswith("POST"):
        assert (200 in seen) == (mode is GenerationMode.POSITIVE) and 400 in seen
