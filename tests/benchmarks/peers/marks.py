"""What a trainer built on transformers writes for the comparison: when each step ended, and what it logged.

Knows: transformers alone: it is imported in the environments of other trainers.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import TrainerCallback


class Marks(TrainerCallback):
    """A line at the end of each step, and the loss that the trainer logs."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - kept open while it trains

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.file.write(json.dumps({"step": state.global_step}) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.file.write(json.dumps({"logged": state.global_step, **(logs or {})}) + "\n")
