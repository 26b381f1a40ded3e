"""Images to what the language model gets of them, each looked at once.

Knows: pixels by their hash, which images go through the tower together, and whose features are kept.
Does not know: files, prompts, rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from workbench.inference.decoding import evaluating
from workbench.inference.prefix_cache import FeatureCache, weights_state
from workbench.model.llava import Llava

TOWER_BATCH = 32
"""Images that go through the vision tower together."""


class Vision:
    """One model's tower and projector, and the features of images it has seen."""

    def __init__(self, llava: Llava, features: FeatureCache) -> None:
        self.llava, self.features = llava, features

    @torch.no_grad()
    def look(
        self, pixels: Mapping[str, Callable[[], torch.Tensor]], through: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Hash -> what gives its pixels, (3, H, W), becomes hash -> (tokens, width of the language model).

        through: the adapter on the tower, where there are several.
        """
        state = weights_state(self.llava.tower), through
        tower: dict[str, torch.Tensor] = {}
        for name in pixels:
            found = self.features.get((state, name))
            if found is not None:
                tower[name] = found
        with evaluating(self.llava.model), self.llava.autocast():
            for batch in _slices([name for name in pixels if name not in tower]):
                stacked = torch.stack([pixels[name]() for name in batch])
                for name, features in zip(batch, self.llava.tower_features(stacked), strict=True):
                    tower[name] = features.clone()
                    self.features.put((state, name), tower[name])
            projected: dict[str, torch.Tensor] = {}
            for batch in _slices(list(tower)):
                stacked = torch.stack([tower[name] for name in batch])
                projected.update(zip(batch, self.llava.project(stacked), strict=True))
        return projected


def _slices(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), TOWER_BATCH):
        yield names[start : start + TOWER_BATCH]
