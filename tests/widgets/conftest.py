"""What tests of several widgets share."""

from __future__ import annotations

import pytest

from workbench.model.llava import Llava, build
from workbench.recipe import ModelSpec


@pytest.fixture(scope="module")
def llava() -> Llava:
    """The shipped parts with a fresh projector."""
    return build(ModelSpec(vision="tiny", language="tiny", load="fp32"), template="v1", image_mode="square")
