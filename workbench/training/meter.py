"""What a line of metrics says beside the loss: speed, useful arithmetic, memory; and what each conversation lost.

Knows: how to measure these without making a step slower: one small copy from the device at its end.
Does not know: the loop, or where the numbers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from workbench.model.llava import Llava
from workbench.training.batch import Batch
from workbench.training.feed import Work
from workbench.training.flops import measured_peak, step_cost


class Meter:
    """The measurements of one process's steps; `processes` of them share every step's work."""

    def __init__(self, llava: Llava, *, encodes: bool, processes: int = 1) -> None:
        self.device = llava.device
        self.cost = step_cost(llava, encodes=encodes)
        self.peak = processes * measured_peak(llava.device, llava.dtype)
        """Operations per second of plain matrix multiplications, all processes together."""
        self._process = psutil.Process()
        self._ids: list[str] = []
        self._sums: list[torch.Tensor] = []

    def see(self, batch: Batch, losses: torch.Tensor) -> None:
        """Take note of a micro-batch: `losses` (K,) of its supervised tokens."""
        counted = torch.stack([losses.detach().float(), torch.ones_like(losses, dtype=torch.float32)], 1)  # (K, 2)
        sums = counted.new_zeros(len(batch.ids), 2)
        self._sums.append(sums.index_add_(0, batch.conversations, counted))
        self._ids += batch.ids

    def conversations(self) -> tuple[list[str], list[float], list[int]]:
        """Ids, losses per token and tokens of the conversations seen since the last call."""
        ids, sums = self._ids, self._sums
        self._ids, self._sums = [], []
        if not sums:
            return [], [], []
        table = torch.cat(sums).cpu()
        return ids, (table[:, 0] / table[:, 1]).tolist(), table[:, 1].int().tolist()

    def row(self, work: Work, seconds: float) -> dict[str, Any]:
        """Tokens per second, `flops_fraction` (useful arithmetic over the measured peak) and `memory` in bytes."""
        images = {"images": work.tiles, "squares": work.squares}
        amount = self.cost.of(tokens=work.tokens, supervised=work.supervised, pairs=work.pairs, **images)
        return {
            "tokens_per_s": round(work.tokens / seconds, 1),
            "flops_fraction": round(amount / seconds / self.peak, 4),
            "memory": self.memory(),
        }

    def memory(self) -> int:
        """Bytes: the most that tensors took on a CUDA device so far, else what this process holds now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._process.memory_info().rss


def told_beside(row: Mapping[str, Any]) -> str:
    """What stands beside the progress bar after a step."""
    return f"loss {row['loss']:.3f}, {row['tokens_per_s']:,.0f} tokens/s, {row['flops_fraction']:.0%} of peak"
