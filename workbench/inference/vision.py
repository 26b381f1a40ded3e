"""Images to what the language model gets of them, each looked at once.

Knows: tiles by their hash, which go through the tower together, and whose features are kept.
Does not know: files, prompts, rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from workbench.inference.decoding import evaluating
from workbench.inference.pixels import Known
from workbench.inference.prefix_cache import FeatureCache, weights_state
from workbench.model.llava import Llava

TOWER_BATCH = 32
"""Squares that go through the vision tower together, or those of one image or video if they are more."""


class Vision:
    """One model's tower and projector, and the features of images it has seen."""

    def __init__(self, llava: Llava, features: FeatureCache) -> None:
        self.llava, self.features = llava, features

    @torch.no_grad()
    def look(self, shown: Mapping[str, Known], through: str | None = None) -> dict[str, torch.Tensor]:
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
            tiling, sizes = self.llava.tiling, {name: one.size for name, one in shown.items()}
            squares = {name: tiling.squares(size) for name, size in sizes.items()}
            counts = {name: tiling.tiles(size) for name, size in sizes.items()}
            for names in _slices(squares, [name for name in shown if name not in tower]):
                tiles = torch.cat([shown[name].open().tiles for name in names])
                features = self.llava.gather(self.llava.tower_features(tiles), [sizes[name] for name in names])
                seen = features.split([counts[name] for name in names])
                for name, own in zip(names, seen, strict=True):
                    tower[name] = own.clone()
                    self.features.put((state, name), tower[name])
            rows: dict[str, torch.Tensor] = {}
            for names in _slices(counts, list(tower)):
                projected = self.llava.project(torch.cat([tower[name] for name in names]))
                parts = projected.split([counts[name] for name in names])
                for name, made in zip(names, parts, strict=True):
                    rows[name] = self.llava.arrange(made, tiling.places([sizes[name]]))[0]
        return rows


def _slices(counts: Mapping[str, int], names: Sequence[str]) -> Iterator[list[str]]:
    """Names of images whose tiles, so many of each, go together."""
    some: list[str] = []
    for name in names:
        if some and sum(counts[one] for one in some) + counts[name] > TOWER_BATCH:
            yield some
            some = []
        some.append(name)
    if some:
        yield some
