"""Servers on loopback for the tests of this room, around a model that is told what to say or a tiny LLaVA."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.requests_made import Client
from workbench.chat_model import ScriptedModel
from workbench.serving.limits import Limits
from workbench.serving.run import Server

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network when it is imported


@pytest.fixture
def serving() -> Iterator[Callable[..., Client]]:
    """`serving(model, **options)`: a server in a thread, ended after the test."""
    servers: list[Server] = []

    def start(model: Any = None, **options: Any) -> Client:
        model = ScriptedModel(lambda conversation: "a red cube on the left") if model is None else model
        server = Server(model, port=0, **{"limits": Limits()} | options).start()
        servers.append(server)
        return Client(server)

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def llava() -> Any:
    """The shipped tiny parts with a fresh projector, as a model in memory."""
    from workbench.model.llava import build
    from workbench.recipe import Recipe

    return build(Recipe.load("tiny-align").model, template="tiny", image_mode="square")
