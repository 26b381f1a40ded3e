"""Images to what the language model gets of them, each looked at once.

Knows: tiles by their hash, which go through the tower together, and whose features are kept.
Does not know: files, prompts, rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from workbench.inference.decoding import evaluating
from workbench.inference.prefix_cache import FeatureCache, weights_state
from workbench.model.llava import Llava
from workbench.model.tiling import Shown

TOWER_BATCH = 32
"""Tiles that go through the vision tower together, or those of one image if they are more."""


class Vision:
    """One model's tower and projector, and the features of images it has seen."""

    def __init__(self, llava: Llava, features: FeatureCache) -> None:
        self.llava, self.features = llava, features

    @torch.no_grad()
    def look(self, shown: Mapping[str, Shown], through: str | None = None) -> dict[str, torch.Tensor]:
        """Hash -> an image becomes hash -> (tokens, width of the language model).

        through: the adapter on the tower, where there are several.
        """
        state = weights_state(self.llava.tower), through
        tower: dict[str, torch.Tensor] = {}
        for name in shown:
            found = self.features.get((state, name))
            if found is not None:
                tower[name] = found
        with evaluating(self.llava.model), self.llava.autocast():
            for names, counts in _slices(shown, [name for name in shown if name not in tower]):
                tiles = torch.cat([shown[name].tiles for name in names])
                for name, features in zip(names, self.llava.tower_features(tiles).split(counts), strict=True):
                    tower[name] = features.clone()
                    self.features.put((state, name), tower[name])
            rows: dict[str, torch.Tensor] = {}
            for names, counts in _slices(shown, list(tower)):
                projected = self.llava.project(torch.cat([tower[name] for name in names])).split(counts)
                for name, made in zip(names, projected, strict=True):
                    rows[name] = self.llava.arrange(made, self.llava.tiling.places([shown[name].size]))[0]
        return rows


def _slices(shown: Mapping[str, Shown], names: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Names of images whose tiles go together, and how many tiles each has."""
    some: list[str] = []
    counts: list[int] = []
    for name in names:
        count = len(shown[name].tiles)
        if some and sum(counts) + count > TOWER_BATCH:
            yield some, counts
            some, counts = [], []
        some.append(name)
        counts.append(count)
    if some:
        yield some, counts
