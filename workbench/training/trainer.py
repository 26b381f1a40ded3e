"""The training loop, readable top to bottom: packs in, gradients summed, one optimiser step, one line of metrics.

Knows: the order of things in a run: look at everything that could go wrong, describe, step, validate, save, obey.
Does not know: how conversations become tokens, how packs share an image, what trains, what a checkpoint consists of.

Every step is a pure function of the recipe, the weights and its own number: the plan, the learning rate and the random
numbers of a step follow from seed and step alone. That is why a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from workbench.data.dataset import Dataset
from workbench.losses import LossFile
from workbench.model.llava import Llava, build
from workbench.model.precision import pick_device
from workbench.model.stages import prepare
from workbench.progress import Progress, in_notebook
from workbench.progress import progress as make_bar
from workbench.recipe import Recipe, TrainSpec
from workbench.run import Run
from workbench.training.answers import Answers
from workbench.training.attention import check_places, check_window
from workbench.training.checkpointing import checkpoint_layers
from workbench.training.compiling import compile_layers
from workbench.training.conditions import conditions, long_lived, seed_step
from workbench.training.data_wait import DataWait
from workbench.training.describe import describe
from workbench.training.distributed import Processes
from workbench.training.examples import Examples
from workbench.training.faults import named_images, named_memory, refuse_loss
from workbench.training.feature_choice import choose
from workbench.training.features import FeatureStore, open_store
from workbench.training.feed import Feed, Piece
from workbench.training.lengths import VALIDATION, Lengths, measure
from workbench.training.meetings import meetings
from workbench.training.meter import Meter, told_beside
from workbench.training.mixture import read_sources
from workbench.training.optim import averages, check_optimizer, lr_factor, make_optimizer, set_rates
from workbench.training.packing import Plan, group, packs, trees
from workbench.training.peers import Peers
from workbench.training.placement import place
from workbench.training.plan import settle, settle_memory
from workbench.training.room import answers_left_out, tighten
from workbench.training.sizes import Sizes, find_sizes
from workbench.training.source import Source, find_images, refuse_images, users_of
from workbench.training.state import Checkpoints, check_data, fingerprints
from workbench.training.trackers import Trackers, check_installed
from workbench.training.validation import check_early_stop, means_by, note, settled, told, without_effect
from workbench.training.zero_config import zero_config

PAUSE_SECONDS = 0.2
"""How often a paused run looks whether it may go on."""
PAUSE, STOP = 2, 4
"""What processes tell each other that the run is asked for; 1 is to save, also in a pause."""


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    llava: Llava | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Run one training stage in the folder `out` and return its run: finished, or `stopped` if it was asked to stop.

    `llava` and `dataset` replace what the recipe's `model` and `data.dataset` name; the model is trained in place.
    `resume` goes on with an unfinished run. Under `accelerate launch` every process calls this and does its share.
    Raises `TrainingError` before the first step for whatever cannot be trained on, `RunError` for a folder in the way,
    `DiskError` when a checkpoint cannot be written (the run can be resumed from the one before).
    """
    processes = Processes(recipe.model.device)
    main = processes.main
    with Peers(processes.rank, processes.world) as peers:
        processes.wait()  # until all of them listen: from here on no failure goes unheard
        if recipe.train.fit:
            recipe = processes.gather(
                settle(recipe, out, dataset, processes=processes.world, resume=resume) if main else None
            )[0]
        run = Run.create(out, recipe, kind="train", resume=resume) if main else Run(out)
        with peers.failing(run.fail if main else lambda error: None), conditions(recipe.train.threads) as asked:
            with long_lived():
                loop = Loop(processes, peers, run, recipe, llava, dataset, asked, show=progress and main)
            with closing(loop.trackers), closing(loop.losses), closing(loop.answers), loop.feed.store:
                finished = loop.run_all()
        if main:
            held = loop.position
            run.finish(step=held.step, val_loss=held.best, best_step=held.best_step) if finished else run.close()
        processes.wait()
    return run


class Loop:
    """One run: everything it needs, put together in the order in which it can fail, and its steps."""

    def __init__(
        self,
        processes: Processes,
        peers: Peers,
        run: Run,
        recipe: Recipe,
        llava: Llava | None,
        dataset: Dataset | None,
        asked: threading.Event,
        *,
        show: bool,
    ) -> None:
        self.processes, self.peers, self.run, self.recipe, self.asked = processes, peers, run, recipe, asked
        self.show, self.main, self.spec = show, processes.main, recipe.train
        spec = self.spec
        check_optimizer(spec.optimizer, llava.device if llava else pick_device(recipe.model.device))
        check_installed(spec.trackers)
        zero = zero_config(recipe)
        source = read_sources(recipe.data, seed=spec.seed, dataset=dataset, say=self._say)
        check_early_stop(spec, len(source.val))
        self._say(without_effect(spec, len(source.val)))
        files = find_images(source)
        self.llava = llava or build(
            recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=spec.seed
        )
        check_window(self.llava, spec.max_tokens)
        sizes = find_sizes(source, files, self.llava.tiling)
        examples, self.val_examples = (Examples(rows, self.llava, sizes) for rows in (source.train, source.val))
        name = str(dataset.path if dataset else recipe.data.dataset)
        with processes.main_first():
            parts = ((examples, name), (self.val_examples, name + VALIDATION))
            lengths, val = (self._measure(each, of, source.mend) for each, of in parts)
        groups = prepare(self.llava, spec, say=self._say)
        trained = [parameter for group in groups for parameter in group.params]
        weights = sum(each.nbytes for each in trained)  # before they are cut
        state = sum(averages(each.numel(), spec.optimizer) for each in trained)
        plan = Plan.of(lengths.entries(), spec)
        met = meetings(plan, spec, source.train, source.val, self.llava.tiling)
        cache = choose(self.llava, spec, plan, met, lengths)
        self.spec = spec = cache.settled(spec)
        chosen = recipe.model_copy(update={"train": spec})
        every, tight, said = settle_memory(chosen, self.llava, lengths, len(met.keys), processes.world)
        checkpoint_layers(self.llava, every)
        if spec.compile:
            compile_layers(self.llava)
        if tight:
            tighten()
        if said:
            self._say(said)
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep=spec.keep_last)
        with processes.main_first():
            self.position, states = self.checkpoints.restore(self.llava, mend=self.main, say=self._say)
        self.data = fingerprints(source)
        if states:
            check_data(states.get("data"), self.data, run.path)
        tokens = int(lengths.frame["tokens"].sum())
        processes.agree(conversations=len(lengths), tokens=tokens, validation=len(val), step=self.position.step)
        self.placement = place(self.llava, groups, processes, spec, zero)
        made = make_optimizer(self.placement.groups, betas=spec.betas, name=spec.optimizer)
        self.optimizer = self.placement.adopt(made)
        self.scaler = torch.amp.GradScaler(self.llava.device.type, enabled=self.llava.dtype == torch.float16)
        self.steps_per_epoch = plan.steps_per_epoch
        self.steps = plan.steps(spec)
        if self.main:
            saves = -(-(self.steps - self.position.step) // (spec.save_every or self.steps))
            self.checkpoints.check_room(weights, state, saves, best=len(val) > 0)
        self._say(str(describe(lengths, val, spec, plan, shown=source.train, left_out=source.left_out)))
        self._say(str(cache))
        store = self._open_images(source, files, sizes, met.keys)
        self.users = users_of(source, files)
        rank, world = processes.rank, processes.world
        self.feed = Feed(plan, examples, store, self.llava, pack_tokens=spec.pack_size, rank=rank, world=world)
        if self.placement.together:  # a small piece that counts nothing, for a process that has none of its own
            self.spare = self.feed.piece([min(plan.step(0), key=lambda tree: tree.tokens)])
        groups_of_val = group(val.entries(), share=spec.share)
        cut = trees(groups_of_val, max_share=spec.max_share, max_tokens=spec.tree_size)
        self.val = packs(cut, spec.pack_size)
        held = source.val.frame
        self.numbers = {id: number for number, id in enumerate(held["id"])}
        self.tasks = held["task"].fill_null("other").to_list()
        self.datasets = held["dataset"].to_list() if "dataset" in held.columns else []
        if states:
            self.placement.load_state(self.optimizer, states["optimizer"])
            self.scaler.load_state_dict(states["scaler"])
        self.position.processes, before = processes.world, self.position.processes
        if self.position.step and before != processes.world:
            self._say(f"{processes.world} processes go on with what {before} began" + _masks(spec))
        self.wait = DataWait(store)
        self.meter = Meter(self.llava, encodes=not store.holds_all and store.cache is None, processes=world)
        self.losses = LossFile(run.path, rank=rank, world=world)
        asks = source.val if spec.answers_every and self._may_answer() else []
        self.answers = Answers(run.path, self.llava, asks, source.resolve, keeps=self.main)
        names, settings = spec.trackers if self.main else [], recipe.model_dump(mode="json")
        self.trackers = Trackers(names, run, settings, step=self.position.step)

    # --- the loop -----------------------------------------------------------------------------------------------

    def run_all(self) -> bool:
        """All steps that are left; False if the run was asked to stop before the last."""
        spec, position = self.spec, self.position
        if self.main:
            if not position.step and (lost := len(self.run.metrics())):
                self._say(f"no checkpoint was saved: begins again at step 1; {lost} lines of metrics go")
            for key, (old, new) in self.run.changed.items():
                self._say(f"goes on with {key}: {new} (it was {old})")
            self.run.rewind(position.step)
            self.run.update(steps=self.steps)
        self.losses.rewind(position.step)
        self.answers.rewind(position.step)
        if position.step:
            self._say(f"goes on after step {position.step} of {self.steps}")
        stream = self.feed.stream(position.step, self.steps)
        if position.step == 0:
            self._answer()
        self._train_mode()
        with self._bar(self.recipe.name, self.steps, "step", before=position.step) as bar:
            while position.step < self.steps and not settled(spec, position):
                row = self.step(position.step, stream)
                position.step += 1
                end = position.step == self.steps
                if end or position.step % spec.log_every == 0:
                    self._log(row)
                if self.val and (end or _due(position.step, spec.eval_every)):
                    self.validate()
                    end = end or settled(spec, position)
                if end or _due(position.step, spec.answers_every):
                    self._answer()
                command = self._command()
                if end or command or _due(position.step, spec.save_every):
                    self.save()
                bar.advance(1, note=f"{told_beside(row)}{self.wait.note}")
                if command == "stop" and not end:
                    self._say(f"stopped after step {position.step} of {self.steps}: resume to go on")
                    self._say(self.wait.told)
                    return False
        if position.step < self.steps:
            why = f"{spec.early_stop} validations without a lower loss"
            self._say(f"ended at step {position.step} of {self.steps}: {why}")
        self._say(told(position))
        self._say(self.wait.told)
        return True

    def step(self, number: int, stream: Iterator[Any]) -> dict[str, Any]:
        """Optimiser step `number`, counted from 0, over all its packs; returns its line of metrics.

        The loss is the sum over all supervised tokens of the step divided by their number, however they were
        packed, and whatever the number of processes.
        """
        spec, began = self.spec, time.perf_counter()
        seed_step(spec.seed, number, self.processes.rank)
        factor = lr_factor(number, self.steps, warmup=spec.warmup, schedule=spec.schedule)
        rates = set_rates(self.optimizer, factor)
        asked = time.perf_counter()
        work, loss = next(stream), torch.zeros((), device=self.llava.device)
        waited, parts = time.perf_counter() - asked, []
        for turn in range(self.placement.turns(work.pieces)):
            asked = time.perf_counter()
            piece = self._next(stream, number) if turn < work.pieces else self.spare
            waited += time.perf_counter() - asked
            with named_memory(number + 1, self.processes, piece.batch):
                losses = self.placement.losses(piece.batch, piece.images)
                if turn < work.pieces:
                    self.meter.see(piece.batch, losses)
                part = losses.sum() / work.supervised * (turn < work.pieces)
                if part.requires_grad:  # it does not for text alone where the language model is frozen
                    self.scaler.scale(part).backward()
            loss += part.detach()
            parts.append((piece.batch, losses.detach()))
        total = self.processes.sum(loss).item()
        with named_memory(number + 1, self.processes):
            norm = self.placement.step(self.optimizer, self.scaler, spec.clip) if math.isfinite(total) else math.nan
        if not math.isfinite(total) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            found = f"a loss of {total}" if not math.isfinite(total) else f"a gradient of norm {norm}"
            refuse_loss(number + 1, found, parts[: work.pieces], self.processes, latest=self._latest())
        self.optimizer.zero_grad(set_to_none=True)
        epoch = round((number + 1) / self.steps_per_epoch, 4)
        self.losses.append(number + 1, epoch, *self.meter.conversations())
        seconds = time.perf_counter() - began
        return {
            "step": number + 1,
            "epoch": epoch,
            "loss": total,
            "lr": rates,
            "grad_norm": norm,
            "tokens": work.tokens,
            "supervised_tokens": work.supervised,
            "images": work.images,
            "conversations": work.conversations,
            "seconds": round(seconds, 4),
            **self.wait.add(waited, seconds),
            **self.meter.row(work, seconds),
        }

    @torch.no_grad()
    def validate(self) -> None:
        """Log the loss per supervised token of the validation part, by task and dataset too; keep the best model."""
        began = time.perf_counter()
        self.llava.model.eval()
        sums = torch.zeros(len(self.tasks), 2, dtype=torch.float64)  # (conversation, (loss, tokens))
        mine = self.val[self.processes.rank :: self.processes.world]
        pieces = self.feed.pieces(mine, self.val_examples)
        for turn in range(self.placement.turns(len(mine))):
            with named_images(self.position.step, self.processes, self.users):
                piece = next(pieces) if turn < len(mine) else self.spare
            with named_memory(self.position.step, self.processes, piece.batch):
                losses = self.placement.losses(piece.batch, piece.images).cpu().double()
            if turn >= len(mine):
                continue
            numbers = torch.tensor([self.numbers[id] for id in piece.batch.ids])
            owners = numbers[piece.batch.conversations.cpu()]
            sums.index_add_(0, owners, torch.stack([losses, torch.ones_like(losses)], 1))
        self._train_mode()
        sums = self.processes.sum(sums)
        loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
        seconds, step = round(time.perf_counter() - began, 4), self.position.step
        row = {"step": step, "val_loss": loss, "val_loss_by_task": means_by(self.tasks, sums), "val_seconds": seconds}
        self._log(row | ({"val_loss_by_dataset": means_by(self.datasets, sums)} if self.datasets else {}))
        if note(self.position, loss):
            held = self.placement.gather()
            if self.main:
                with self.peers.unhurried():
                    self.checkpoints.save_best(self.llava, self.position, self.recipe, held)
            self.processes.wait()

    def _answer(self) -> None:
        """The held-out questions, as the model answers them now."""
        step = self.position.step
        due = self.main and self.answers.chosen and not self.answers.asked_at(step)
        if self.processes.largest(int(bool(due))):
            self.placement.whole(lambda: self.answers.ask(step))
            self._train_mode()

    def _may_answer(self) -> bool:
        """Whether each process has room for the whole model, where it is cut among them."""
        why = answers_left_out(self.placement.more(self.optimizer), self.llava, self.spec, self.processes.world)
        if left_out := self.processes.largest(int(bool(why))):
            self._say(why or "train.answers_every: no questions are answered: another process lacks room for the model")
        return not left_out

    def save(self) -> None:
        """Write a checkpoint to resume from."""
        held, state = self.placement.gather(), self.placement.state(self.optimizer)
        if self.main:
            states = {"optimizer": state, "scaler": self.scaler.state_dict(), "data": self.data}
            with self.peers.unhurried():
                self.checkpoints.save(self.llava, self.position, self.recipe, held=held, **states)
        self.processes.wait()

    # --- small things -------------------------------------------------------------------------------------------

    def _measure(self, examples: Examples, name: str, mend: str) -> Lengths:
        with self._bar("lengths", len(examples), "conversation") as bar:
            lengths = measure(examples, name=name, bar=bar, mend=mend)
        lengths.refuse_unfit(self.spec.max_tokens, mend)
        check_places(self.llava, lengths.longest())
        return lengths

    def _open_images(
        self, source: Source, files: dict[str, Path], sizes: Sizes | None, keys: Sequence[str]
    ) -> FeatureStore:
        """Every image that the steps need, opened and through a frozen tower once if that fits in memory."""
        store = open_store(self.llava, files, self.spec, sizes=sizes, say=self._say)
        what = "images of the steps, opened" if self.llava.vision_trains else "images of the steps, through the tower"
        with self._bar(what, len(keys), "image") as bar:
            refuse_images(store.fill(keys, bar), source, files)
        return store

    def _train_mode(self) -> None:
        """LoRA's dropout is on; a frozen tower stays as it is."""
        self.llava.model.train()
        if not self.llava.vision_trains:
            self.llava.tower.eval()

    def _next(self, stream: Iterator[Any], number: int) -> Piece:
        with named_images(number + 1, self.processes, self.users):
            return next(stream)

    def _command(self) -> str | None:
        """What the run is asked to do at this border of steps: `stop`, `save` or nothing. Waits while it is paused.

        Saves in a pause if it is asked to. The processes ask each other again and again meanwhile: none is left waiting
        for longer than it may.
        """
        while True:
            asked = self.run.commands if self.main else frozenset()
            stops = "stop" in asked or self.asked.is_set()
            code = self.processes.largest(STOP if stops else PAUSE * ("pause" in asked) + ("save" in asked))
            if "save" in asked:
                self.run.obeyed("save")
            if code == PAUSE:
                time.sleep(PAUSE_SECONDS)
            elif code == PAUSE + 1:
                self.save()
            else:
                break
        if asked and code == STOP:
            self.run.send(None)
        return {0: None, STOP: "stop"}.get(code, "save")

    def _latest(self) -> str:
        last = self.checkpoints.last
        return f"the checkpoint in {last} is intact" if last.is_dir() else "no checkpoint was saved yet"

    def _log(self, row: dict[str, Any]) -> None:
        if self.main:
            self.run.log(row)
        self.trackers.log(row)

    def _bar(self, name: str, total: int, unit: str, before: int = 0) -> Progress:
        return (make_bar if self.show else Progress)(name, total=total, unit=unit, before=before)

    def _say(self, text: str) -> None:
        if self.show and text:
            print(text, file=sys.stdout if in_notebook() else sys.stderr, flush=True)  # a notebook marks stderr red


def _masks(spec: TrainSpec) -> str:
    return "; dropout draws other masks than it would have" if spec.lora.dropout else ""


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
