"""Planning a training run before a byte of weights is read: what it sees, what it takes, whether it fits.

Knows: how counts, parameter groups, the worst pack and its memory come together, which settings to try so that a run
fits, and which field of the recipe to change if none does.
Does not know: how any of them is found (`describe.py`, `memory.py`, `room.py`), or how it is told (`forecast.py`).

>>> import workbench as wb
>>> print(wb.plan(wb.Recipe.load("tiny-align"), dataset))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from workbench.data.dataset import Dataset
from workbench.errors import ModelError, TrainingError
from workbench.model.llava import Llava, projector_for
from workbench.model.outline import outline, outline_of
from workbench.model.precision import is_quantised, pick_device
from workbench.model.stages import table
from workbench.progress import progress
from workbench.recipe import FITTED, Recipe, TrainSpec, as_recipe
from workbench.recipe_yaml import on_dataset
from workbench.run import Run
from workbench.training.attention import check_places, check_window
from workbench.training.describe import describe
from workbench.training.examples import Examples
from workbench.training.feature_choice import choose
from workbench.training.flops import measured_peak, tower_cost
from workbench.training.forecast import LAYERS, Forecast
from workbench.training.head import CHUNK
from workbench.training.launch import check_processes
from workbench.training.lengths import VALIDATION, Lengths, measure
from workbench.training.loading import while_loading
from workbench.training.meetings import meetings
from workbench.training.memory import Foresight, Memory, at_most, part_of
from workbench.training.mixture import read_sources
from workbench.training.optim import check_optimizer
from workbench.training.packing import Entry, Pack, Plan, packs
from workbench.training.room import LOOSE, MARGIN, choose_layers, free_memory, held_images
from workbench.training.rows import Rows
from workbench.training.sharded_memory import in_shards
from workbench.training.sizes import find_sizes
from workbench.training.source import find_images
from workbench.training.strip import Strip

LARGEST, SMALLEST, ON_CPU = 16_384, 512, 4096
"""Tokens of the packs that are tried when the size of a pack is to be chosen; no CPU is faster with larger ones."""
STEPS = 2000
"""The worst pack is looked for among those of so many steps of the first epoch."""


def plan(
    recipe: Recipe | str | Path,
    dataset: Dataset | str | Path | None = None,
    *,
    fit: bool = False,
    processes: int = 1,
) -> Forecast:
    """What `workbench.train` would do with the same arguments.

    For a device that this machine lacks, shapes are counted on the CPU; `train.memory_gb` must say what that one has.
    `dataset` replaces what `data.dataset` names; `fit` (or `train.fit`) chooses `train.pack_tokens`,
    `train.checkpointing` and `train.feature_cache`. Memory and time are those of each of `processes` that share the
    run. Raises `ModelError`, `DataError` and `TrainingError` as `train` would, but lists conversations that are too
    long, or have nothing to train on, instead of refusing them.

    >>> foreseen = wb.plan("tiny-align", "data")
    >>> foreseen.trains, foreseen.fits
    (True, True)
    """
    check_processes(processes)
    recipe = as_recipe(recipe)
    if isinstance(dataset, str | Path):
        recipe, dataset = recipe.with_overrides(on_dataset(dataset)), None
    elif dataset is not None:
        dataset = Dataset.open(dataset)
    asked, recipe = recipe.model.device, _countable(recipe)
    train = recipe.train
    source = read_sources(recipe.data, seed=train.seed, dataset=dataset, say=lambda text: None)
    files = find_images(source)
    made = outline(recipe.model, template=recipe.template, image_mode=recipe.image_mode)
    llava = made.llava
    if recipe.model.projector_from is not None:
        projector_for(llava, recipe.model.projector_from)
    loading = while_loading(llava)  # before what trains is held in float32
    elsewhere = asked != recipe.model.device
    check_optimizer(train.optimizer, asked if elsewhere else llava.device)
    check_window(llava, train.max_tokens)
    name = str(dataset.path if dataset else recipe.data.dataset)
    sizes = find_sizes(source, files, llava.tiling)
    parts = ((source.train, name), (source.val, name + VALIDATION))
    lengths, val = (_measure(Examples(rows, llava, sizes), of, source.mend) for rows, of in parts)
    too_long, untrained = _unfit(lengths, val, train.max_tokens)
    lengths, shown = _fit(lengths, source.train, train.max_tokens)
    val, shown_val = _fit(val, source.val, train.max_tokens)
    _refuse_none_left(lengths, len(source.train))
    check_places(llava, max(part.longest() for part in (lengths, val)))
    foresight, entries = Foresight(made, train, card=elsewhere), lengths.entries()
    order = Plan.of(entries, train)
    met = meetings(order, train, shown, shown_val, llava.tiling)
    choice = choose(llava, train, order, met, lengths)
    foresight.train = choice.settled(train)
    tiles = lengths.tiles(len(met.keys), squares=llava.vision_trains)
    free = free_memory(llava.device, train, processes)
    there: dict[str, Any] = {"tiles": tiles, "free": free, "processes": processes}
    foreseen = Foreseen(foresight, entries, **there, order=order)
    if fit or train.fit:
        recipe = fitted(_with(recipe, feature_cache=choice.kind) if train.feature_cache == "auto" else recipe, foreseen)
    memory, every, worst = foreseen.fullest()
    order = foreseen.order(recipe.train.pack_tokens)
    counts = describe(lengths, val, recipe.train, order, shown=shown, left_out=source.left_out)
    operations = memory.flops / sum(tree.tokens for tree in worst.pack) * counts.tokens * counts.epochs
    speed = measured_peak(llava.device, llava.dtype)
    tower = 0.0 if llava.vision_trains else tower_cost(llava) * choice.through_tower(processes) / speed
    return Forecast(
        recipe=recipe,
        counts=counts,
        groups=table(foreseen.foresight.groups),
        parameters=_parameters(llava),
        too_long=too_long,
        untrained=untrained,
        memory=memory,
        loading=loading,
        checkpointed=every,
        free=foreseen.free,
        device=asked if elsewhere else str(llava.device),
        processes=processes,
        worst=worst.pack,
        pieces=worst.pieces,
        held=foreseen.held,
        cache=choice,
        seconds=operations / speed / processes + tower,
        tower_seconds=tower,
        strip=Strip(llava, shown[0], sizes),
        advice="" if memory.peak <= MARGIN * foreseen.free else advise(recipe, foreseen),
        mixed=source.mixed,
    )


def _countable(recipe: Recipe) -> Recipe:
    """The recipe for a device that this machine has."""
    try:
        pick_device(recipe.model.device)
    except ModelError as error:
        if recipe.train.memory_gb is None:
            fix = "to plan for another machine, say by train.memory_gb how much memory its device has"
            raise ModelError(error.where, found=error.found, expected=error.expected, fix=fix) from None
        return recipe.with_overrides("model.device=cpu")
    return recipe


def settle(
    recipe: Recipe, out: str | Path, dataset: Dataset | None = None, *, processes: int = 1, resume: bool = False
) -> Recipe:
    """The recipe of a run in the folder `out` with what `train.fit` asks for chosen, as it was if the run goes on.

    Raises `RunError` for a folder in the way, before anything is planned.
    """
    if not recipe.train.fit:
        return recipe
    run = Run(out)
    if run.check_folder(resume):
        return _with(recipe, **{name: getattr(run.recipe.train, name) for name in FITTED})
    return plan(recipe, dataset, processes=processes).recipe


def _with(recipe: Recipe, **train: Any) -> Recipe:
    """The recipe with these fields of `train` changed."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def settle_memory(recipe: Recipe, llava: Llava, lengths: Lengths, images: int, processes: int) -> tuple[int, bool, str]:
    """(each so-many-th layer to checkpoint, whether freed memory is given back at once, what to say) for a prepared
    model that is in memory already. Follows a step only where it is not plain that it fits.
    """
    train = recipe.train
    weights = sum(parameter.nbytes for parameter in llava.model.parameters())
    free = free_memory(llava.device, train, processes) + (weights if train.memory_gb is None else 0)
    every, tight = int(train.checkpointing == "on"), train.allocator == "tight"
    longest = max(train.tree_size, lengths.longest())
    tiles = lengths.tiles(images, squares=llava.vision_trains)
    if LOOSE * (at_most(llava, longest) + held_images(llava, tiles, train)) <= MARGIN * free:
        return every, tight, ""
    if train.checkpointing != "auto" and (train.allocator != "auto" or llava.device.type != "cpu"):
        return every, tight, ""
    quantised = any(map(is_quantised, llava.model.modules()))
    settings = {"template": recipe.template, "image_mode": recipe.image_mode}
    made = outline(recipe.model, **settings) if quantised else outline_of(llava)
    sizes: dict[str, Any] = {"tiles": tiles, "free": free, "processes": processes}
    foreseen = Foreseen(Foresight(made, train), lengths.entries(), **sizes)
    memory, every, _ = foreseen.fullest()
    tight = tight or (train.allocator == "auto" and LOOSE * memory.peak > MARGIN * free)
    said = f"memory: {memory.peak / 1e6:,.0f} MB foreseen, {free / 1e6:,.0f} MB there; activations are computed again "
    said += LAYERS[every]
    return every, tight, said if memory.peak <= free else f"{said}: it may not fit, see `workbench plan`"


@dataclass(frozen=True)
class Worst:
    """The pack that takes most memory."""

    pack: Pack
    pieces: int
    """Packs that one process has in the step that has most of them."""


class Foreseen:
    """A recipe's memory as a function of its settings, over one dataset."""

    def __init__(
        self,
        foresight: Foresight,
        entries: Sequence[Entry],
        *,
        tiles: int,
        free: int,
        processes: int,
        order: Plan | None = None,
    ) -> None:
        self.foresight, self.entries, self.tiles, self.free = foresight, entries, tiles, free
        self.processes = processes
        self.train: TrainSpec = foresight.train
        self._orders: dict[int | None, Plan] = {} if order is None else {self.train.pack_tokens: order}

    @property
    def held(self) -> int:
        """Bytes of image features or pixels that stay in the machine's memory, where that is what is foreseen."""
        return 0 if self.foresight.card else held_images(self.foresight.llava, self.tiles, self.train)

    def worst(self, pack_tokens: int | None) -> Worst:
        """By size: every token is as many numbers as the layers are wide together, a supervised one the vocabulary."""
        text = self.foresight.llava.model.config.text_config
        wide = text.num_hidden_layers * (12 * text.hidden_size + 4 * text.intermediate_size)

        def weigh(pack: Pack) -> int:
            rows = min(CHUNK, sum(tree.supervised for tree in pack))
            return sum(tree.tokens for tree in pack) * wide + 3 * rows * text.vocab_size

        found, most, pieces = None, -1, 1
        for made in self._steps(pack_tokens):
            pieces = max(pieces, -(-len(made) // self.processes))
            for pack in made:
                if (weight := weigh(pack)) > most:
                    found, most = pack, weight
        assert found is not None
        return Worst(found, pieces)

    def fullest(self, pack_tokens: int | None = None, layers: str | None = None) -> tuple[Memory, int, Worst]:
        """(memory, each so-many-th layer that is checkpointed, worst pack) with these settings or the recipe's."""
        worst = self.worst(pack_tokens or self.train.pack_tokens)

        def peak(every: int) -> Memory:
            memory = self.foresight.peak(worst.pack, every=every, pieces=worst.pieces, held=self.held)
            cut = self.train.shard and self.processes > 1
            return in_shards(memory, self.foresight.llava, self.processes) if cut else memory

        chosen = layers or self.train.checkpointing
        if chosen == "auto":
            every, memory = choose_layers(peak, self.free)
        else:
            every = int(chosen == "on")
            memory = peak(every)
        return memory, every, worst

    def _steps(self, pack_tokens: int | None) -> Iterator[list[Pack]]:
        order = self.order(pack_tokens)
        for number in range(min(order.steps_per_epoch, STEPS)):
            yield packs(order.step(number), pack_tokens or self.train.pack_size)

    def order(self, pack_tokens: int | None) -> Plan:
        """The order of the run with packs of so many tokens (None: as the recipe leaves it), made once."""
        if pack_tokens not in self._orders:
            self._orders[pack_tokens] = Plan.of(self.entries, self.train, pack_tokens=pack_tokens)
        return self._orders[pack_tokens]


def fitted(recipe: Recipe, foreseen: Foreseen) -> Recipe:
    """The recipe with the largest packs that fit, without checkpointing if that is possible; unchanged if none fit."""
    largest = ON_CPU if foreseen.foresight.llava.device.type == "cpu" else LARGEST
    whole = max(sum(entry.tokens for entry in foreseen.entries), 1)
    for layers in ("off", "auto"):
        for tokens in _halves(largest):
            if tokens > SMALLEST and tokens >= 2 * whole:
                continue
            memory, every, _ = foreseen.fullest(tokens, layers)
            if memory.peak <= MARGIN * foreseen.free:
                chosen = {0: "off", 1: "on", 2: "auto"}[every]
                changed = _with(recipe, pack_tokens=tokens, checkpointing=chosen)
                foreseen.train = changed.train
                return changed
    return recipe


def advise(recipe: Recipe, foreseen: Foreseen) -> str:
    """The first change of the recipe that makes it fit, or how much memory it would take."""
    held = foreseen.train.pack_tokens
    tokens: int | None = SMALLEST
    for tokens in (*([None] if held is None else []), *_halves(foreseen.train.pack_size)):
        memory, _, _ = foreseen.fullest(tokens, "on")
        if memory.peak <= MARGIN * foreseen.free:
            smaller = f"train.pack_tokens: {tokens}" if tokens != held else ""
            on = "train.checkpointing: on" if foreseen.train.checkpointing == "off" else ""
            return f"set {' and '.join(filter(None, [smaller, on]))}"
    for change in _lighter(recipe):
        lighter = recipe.with_overrides(*change)
        made = outline(lighter.model, template=lighter.template, image_mode=lighter.image_mode)
        sizes = {name: getattr(foreseen, name) for name in ("tiles", "free", "processes")}
        card = foreseen.foresight.card
        other = Foreseen(Foresight(made, lighter.train, card=card), foreseen.entries, **sizes)
        memory, _, _ = other.fullest(tokens, "on")
        if memory.peak <= MARGIN * foreseen.free:
            fields = [each.replace("=", ": ") for each in change]
            return f"set {', '.join(fields)} and train.fit: true"
    needed = memory.peak / MARGIN
    told = f"{needed / 1e9:.1f} GB" if needed >= 1e8 else f"{needed / 1e6:,.0f} MB"
    return f"it takes a device with {told} free" + ("" if recipe.train.fit else ", and train.fit: true")


def _lighter(recipe: Recipe) -> Iterator[list[str]]:
    """Changes that take less memory, the gentlest first."""
    if recipe.model.load == "fp32" and recipe.train.language != "full":
        yield ["model.load=bf16"]
    if recipe.train.language == "full":
        yield ["train.language=lora", *(["model.load=bf16"] if recipe.model.load == "fp32" else [])]
    if recipe.model.load not in ("4bit", "8bit") and not _cuts_weights(recipe.train):
        yield ["model.load=4bit", *(["train.language=lora"] if recipe.train.language == "full" else [])]


def _cuts_weights(train: TrainSpec) -> bool:
    """Whether weights are cut among processes, which quantised ones cannot be."""
    zero = (train.deepspeed or {}).get("zero_optimization")
    return train.shard or isinstance(zero, dict) and zero.get("stage") == 3


def _halves(tokens: int) -> list[int]:
    return [size for size in (tokens >> n for n in range(16)) if size >= min(SMALLEST, tokens)]


def _measure(examples: Examples, name: str, mend: str) -> Lengths:
    with progress("lengths", total=len(examples), unit="conversation") as bar:
        return measure(examples, name=name, bar=bar, mend=mend)


def _unfit(lengths: Lengths, val: Lengths, limit: int) -> tuple[list[tuple[str, int]], list[str]]:
    """(too long with their tokens, without a token to train on)."""
    unfit = pl.concat([part.unfit(limit) for part in (lengths, val)])
    too_long = unfit.filter("long").select("id", "tokens").rows()
    untrained = unfit.filter(~pl.col("long"))["id"].to_list()
    return too_long, untrained


def _fit(lengths: Lengths, rows: Rows, limit: int) -> tuple[Lengths, Rows]:
    """The conversations that training does not refuse; `lengths` are those of `rows`."""
    numbers = pl.int_range(len(lengths), dtype=pl.UInt32, eager=True)
    fine = ~numbers.is_in(lengths.unfit(limit)["number"].implode())
    return Lengths(lengths.frame.filter(fine), lengths.ids.filter(fine)), rows.where(fine)


def _refuse_none_left(lengths: Lengths, before: int) -> None:
    if not len(lengths):
        fix = "raise train.max_tokens, or choose other conversations"
        found = f"{before:,} conversations, all too long or without a token to train on"
        raise TrainingError("the plan", found=found, expected="at least one to train on", fix=fix)


def _parameters(llava: Llava) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, parameter in llava.model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts
