"""What may be written next, so that a whole answer satisfies a JSON schema; by llguidance.

Knows: a schema and a tokenizer become a grammar, which tokens it allows, and when it is satisfied.
Does not know: logits, or who asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError


class Grammar:
    """The way of one answer through a schema. Raises `WorkbenchError` for a schema that cannot be followed."""

    def __init__(self, vocabulary: Any, schema: str) -> None:
        from llguidance import LLMatcher

        where = "sampling option json_schema"
        try:
            made = LLMatcher.grammar_from_json_schema(json.loads(schema), overrides={"whitespace_flexible": False})
        except (ValueError, TypeError) as problem:
            raise WorkbenchError(where, found=str(problem), expected="a JSON schema, as JSON text") from None
        self._matcher = LLMatcher(vocabulary, made)
        if self._matcher.is_error():
            told = " ".join(self._matcher.get_error().split())[:300]
            raise WorkbenchError(where, found=told, expected="a JSON schema that can be followed token by token")

    def allowed(self, size: int) -> torch.Tensor:
        """Which of `size` tokens may come next: (size,) bool, on the CPU."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        return allowed

    def take(self, token: int) -> None:
        """Go on with this token. Raises `WorkbenchError` for one that was not allowed."""
        if not self._matcher.consume_token(token):
            raise WorkbenchError("json_schema", found=self._matcher.get_error() or f"token {token}, not allowed")

    @property
    def complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return self._matcher.is_stopped()


class Grammars:
    """Grammars over one tokenizer, which is read when the first is asked for: about a second for a large one.

    size: of the logits. end_ids: what ends an answer.
    """

    def __init__(self, tokenizer: Any, size: int, end_ids: Collection[int]) -> None:
        self._tokenizer, self._size, self._end_ids = tokenizer, size, end_ids
        self._vocabulary: Any = None
        self._guard = threading.Lock()

    def of(self, schema: str | None) -> Grammar | None:
        """A new way through this schema; None without one. Raises `WorkbenchError` as `Grammar` does."""
        if schema is None:
            return None
        with self._guard:
            if self._vocabulary is None:
                self._vocabulary = self._read()
        return Grammar(self._vocabulary, schema)

    def _read(self) -> Any:
        from llguidance.hf import from_tokenizer

        size = max(self._size, len(self._tokenizer))
        try:
            return from_tokenizer(self._tokenizer, n_vocab=size, eos_token=sorted(self._end_ids))
        except (ValueError, RuntimeError) as problem:
            expected = "a tokenizer that llguidance reads"
            raise WorkbenchError("sampling option json_schema", found=str(problem), expected=expected) from None
