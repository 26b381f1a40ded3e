"""On which cards a recipe trains and its model answers, foreseen before any data or weights are there.

Knows: the settings that are tried so that a card is enough, and an answer about one picture, as large as pictures can
be. Everything is counted on shapes (`memory.py`); no part of it is a formula of a model. Hours are those counts at a
rate that the caller assumes.
Does not know: a person's data, whose own worst pack `plan` finds; how fast any card is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from workbench.model.lora import used_layers
from workbench.model.outline import Outline, outline
from workbench.model.precision import QUANTISED
from workbench.model.stages import table
from workbench.recipe import Recipe, as_recipe
from workbench.training.blank import some_places
from workbench.training.forecast import LAYERS, human_time
from workbench.training.launch import check_processes
from workbench.training.memory import Foresight, Memory, Meter, labels, part_of
from workbench.training.room import MARGIN
from workbench.training.sharded_memory import in_shards
from workbench.training.usual import PICTURE, context, full_pack, operations

SIZES = (16, 24, 40, 80)
"""Memory of common cards in GB (10**9 bytes)."""
CONTEXT = 2048
"""Tokens of picture, question and answer together, where the picture leaves room in them."""
CONVERSATIONS = 100_000
"""For how many conversations hours are told unless somebody says."""
FORMATS = ("bf16", "8bit", "4bit")


@dataclass(frozen=True)
class Trial:
    """What training takes with these settings."""

    pack_tokens: int
    every: int
    """Each so-many-th layer's activations are computed again; 0: none."""
    memory: Memory
    operations: float
    """Of training on one usual conversation, what is computed again included."""


@dataclass(frozen=True)
class Cards:
    """What fits where. Printed it is a page of text."""

    recipe: Recipe
    parameters: dict[str, int]
    """Numbers in each part, adapters included."""
    unused: int
    """Layers of the tower behind the one whose output is taken."""
    groups: str
    """What trains, as a table."""
    trials: dict[float, Trial | None]
    """Memory of a card in GB -> the quickest settings with which training fits; None if none do."""
    least: Trial
    """The settings that take least."""
    answers: dict[str, int]
    """Number format -> bytes while it answers about a picture."""
    context: int
    """Tokens of such an answer with its picture and question."""
    largest: tuple[int, int]
    """Tiles and tokens of the picture that memory is counted with: as large as a picture can be."""
    sizes: Sequence[float]
    processes: int
    rate: float | None = None
    """Operations a second that each card is taken to keep; None where no time is asked for."""
    conversations: int = CONVERSATIONS

    def seconds(self, size: float) -> float | None:
        """How long training on `conversations` takes at that rate; None where it does not fit, or none was said."""
        trial, passes = self.trials[size], self.conversations * self.recipe.train.epochs
        return trial.operations * passes / (self.rate * self.processes) if trial and self.rate else None

    def answering(self, size: float) -> dict[str, bool]:
        """Number format -> whether it answers on such a card."""
        return {load: peak <= MARGIN * size * 1e9 for load, peak in self.answers.items()}

    def reason(self) -> str:
        """Why the smallest cards are too small."""
        return reason_for(self.least.memory)

    def summary(self) -> dict[str, Any]:
        """The numbers, for a program."""
        told: dict[str, Any] = {"parameters": self.parameters, "answering_bytes": self.answers, "cards": {}}
        for size in self.sizes:
            trial = self.trials[size]
            settings = trial and {"pack_tokens": trial.pack_tokens, "checkpointed_every": trial.every,
                                  "bytes": trial.memory.peak}  # fmt: skip
            told["cards"][f"{size:g}"] = {"training": settings, "answering": self.answering(size)}
            if self.rate:
                told["cards"][f"{size:g}"]["planned_seconds"] = self.seconds(size)
        if self.rate:
            told |= {"assumed_teraflops": self.rate / 1e12, "conversations": self.conversations}
        return told | {"reason": self.reason(), "processes": self.processes, "context": self.context,
                       "largest_picture": {"tiles": self.largest[0], "tokens": self.largest[1]}}  # fmt: skip

    def __str__(self) -> str:
        unused = {0: "", 1: " (its last layer is not used)"}.get(self.unused, f" ({self.unused} layers are not used)")
        numbers = [f"  {name:<15}{count:>15,}{unused if name == 'vision tower' else ''}"
                   for name, count in self.parameters.items()]  # fmt: skip
        each = f", each of {self.processes} processes" if self.processes > 1 else ""
        lines = ["numbers in each part", *numbers, "", self.groups, ""]
        lines.append(f"training{each}, by the memory of a card (foreseen on shapes, not measured)")
        for size in self.sizes:
            trial = self.trials[size]
            seconds = self.seconds(size)
            time = f"; {human_time(seconds)}" if seconds is not None else ""
            lines.append(f"  {size:>3g} GB  {_told(trial) + time if trial else f'no: {self.reason()}'}")
        if self.rate:
            told = f"{self.conversations:,} conversations, if each card keeps {self.rate / 1e12:g} TFLOPS"
            lines.append(f"  times are planned: {told}; nothing was measured")
        if self.largest[0] > 1:
            largest = "pictures of {} tiles ({:,} tokens), the largest there are".format(*self.largest)
            usual = ", hours those of {} x {} pixels".format(*PICTURE) if self.rate else ""
            lines.append(f"  memory is that of {largest}{usual}")
        lines += ["", f"answering about a picture in {self.context:,} tokens, foreseen", "          " + _row(FORMATS)]
        for size in self.sizes:
            fits = self.answering(size)
            cells = [f"{'yes' if fits[load] else 'no'} {self.answers[load] / 1e9:.1f} GB" for load in FORMATS]
            lines.append(f"  {size:>3g} GB  {_row(cells)}".rstrip())
        return "\n".join(lines)


def cards(
    recipe: Recipe | str | Path,
    sizes: Sequence[float] = SIZES,
    *,
    processes: int = 1,
    rate: float | None = None,
    conversations: int = CONVERSATIONS,
) -> Cards:
    """What a recipe's training and its model take on cards of these sizes (GB), each of `processes` that share a run.

    rate: operations a second that each card is taken to keep, such as 1e14; the hours of training on so many
    `conversations`, as long as LLaVA's own and each about a picture of its own, are then told.
    Reads configurations and tokenizers only. Raises `ModelError` as `plan` does.
    """
    check_processes(processes)
    recipe = as_on_a_card(as_recipe(recipe))
    made = _outlined(recipe)
    foresight = Foresight(made, recipe.train, card=True)
    parameters: dict[str, int] = {}
    for name, parameter in made.llava.model.named_parameters():
        parameters[part_of(name)] = parameters.get(part_of(name), 0) + parameter.numel()
    settings = list(_settings(recipe))

    @cache
    def trial(number: int) -> Trial:
        return try_out(foresight, recipe, *settings[number], processes)

    def quickest(size: float) -> Trial | None:
        """Each setting takes less than the one before: the first that fits, found by halving."""
        numbers = range(len(settings))
        first = bisect_left(numbers, True, key=lambda number: trial(number).memory.peak <= MARGIN * size * 1e9)
        return trial(first) if first < len(settings) else None

    trials = {size: quickest(size) for size in sorted(sizes)}
    if recipe.model.load in QUANTISED:
        parameters |= _plain(recipe)
    return Cards(
        recipe=recipe,
        parameters=parameters,
        unused=made.llava.model.config.vision_config.num_hidden_layers - used_layers(made.llava),
        groups=table(foresight.groups),
        trials=trials,
        least=trial(len(settings) - 1),
        answers={load: answer_memory(recipe, load) for load in FORMATS},
        context=context(made.llava.tiling, CONTEXT),
        largest=(made.llava.tiling.most, made.llava.tiling.longest),
        sizes=sizes,
        processes=processes,
        rate=rate,
        conversations=conversations,
    )


def reason_for(least: Memory) -> str:
    """The least that training takes, and what for."""
    most = sorted(least.items.items(), key=lambda item: -item[1])[:2]
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in most)
    return f"at least {least.peak / 1e9:.1f} GB ({parts})"


def answer_memory(recipe: Recipe, load: str) -> int:
    """Bytes at the fullest moment of an answer about one picture, the model held as `load` says."""
    made = _outlined(recipe, load=load, dtype="bf16")
    llava = made.llava
    with made.shapes(), Meter() as meter, torch.no_grad(), labels(llava, [], meter):
        for name, tensor in (*llava.model.named_parameters(), *llava.model.named_buffers()):
            meter.add(tensor, part_of(name))
        side, tiling = llava.model.config.vision_config.image_size, llava.tiling
        features = llava.tower_features(torch.empty(tiling.most_squares, 3, side, side))
        tiles = llava.project(features[: tiling.most])
        image = llava.arrange(tiles, some_places(tiling.longest, tiling.most, llava))
        shape = (1, context(tiling, CONTEXT) - image.shape[1], image.shape[2])
        embedded = torch.cat([image, torch.empty(shape, dtype=image.dtype)], 1)
        made_of = llava.model.model.language_model(inputs_embeds=embedded, use_cache=True)
        llava.model.lm_head(made_of.last_hidden_state[:, -1])
        return sum(held for part, held in meter.fullest().items() if part != "kernels")  # a CPU's, which counts here


def _outlined(recipe: Recipe, **model: str) -> Outline:
    """The recipe's model of shapes, with some fields of `model` changed."""
    changed = recipe.model.model_copy(update=model)
    return outline(changed, template=recipe.template, image_mode=recipe.image_mode)


def _settings(recipe: Recipe) -> Iterator[tuple[int, int]]:
    """(pack tokens, every so-many-th layer computed again), the quickest first; no pack is shorter than a conversation
    may be."""
    train = recipe.train
    tokens = max(train.pack_size, train.max_tokens)
    first = {"auto": (0, 2, 1), "off": (0,), "on": (1,)}[train.checkpointing]
    yield from ((tokens, every) for every in first)
    while tokens // 2 >= train.max_tokens:
        tokens //= 2
        yield tokens, first[-1]


def as_on_a_card(recipe: Recipe) -> Recipe:
    """The recipe with what a card would choose, to be counted anywhere."""
    recipe = recipe.with_overrides("model.device=cpu")
    computes = recipe.model.load in QUANTISED and recipe.model.dtype == "auto"
    return recipe.with_overrides("model.dtype=bf16") if computes else recipe


def try_out(foresight: Foresight, recipe: Recipe, tokens: int, every: int, processes: int = 1) -> Trial:
    """What training takes with packs of so many tokens, every so-many-th layer computed again."""
    llava, train = foresight.llava, recipe.train
    pack = full_pack(tokens, llava.tiling)
    memory = foresight.peak(pack, every=every)
    per_token = memory.flops / sum(tree.tokens for tree in pack)
    cut = in_shards(memory, llava, processes) if train.shard and processes > 1 else memory
    return Trial(tokens, every, cut, operations(llava, train, per_token))


def _plain(recipe: Recipe) -> dict[str, int]:
    """Numbers of the parts whose quantised weights are bytes."""
    llava = _outlined(recipe, load="bf16", dtype="auto").llava
    held = [(part_of(name), each.numel()) for name, each in llava.model.named_parameters()]
    return {"language model": sum(count for part, count in held if part == "language model")}


def _told(trial: Trial) -> str:
    layers = f"activations computed again {LAYERS[trial.every]}"
    return f"yes: {trial.memory.peak / 1e9:.1f} GB with train.pack_tokens: {trial.pack_tokens} and {layers}"


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:<14}" for cell in cells).rstrip()
