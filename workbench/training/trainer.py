"""The training loop, readable top to bottom: packs in, gradients summed, one optimiser step, one line of metrics.

Knows: the order of things in a run: look at everything that could go wrong, describe, step, validate, save, obey.
Does not know: how conversations become tokens, how packs share an image, what trains, what a checkpoint consists of.

Every step is a pure function of the recipe, the weights and its own number: the plan, the learning rate and the random
numbers of a step follow from seed and step alone. That is why a resumed run equals one that was never interrupted.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from workbench.data.dataset import Dataset
from workbench.errors import TrainingError
from workbench.losses import LossFile
from workbench.model.llava import Llava, build
from workbench.model.precision import pick_device
from workbench.model.stages import prepare
from workbench.progress import Progress
from workbench.progress import progress as make_bar
from workbench.recipe import Recipe
from workbench.run import Run
from workbench.training.answers import Answers
from workbench.training.attention import check_window
from workbench.training.conditions import conditions, seed_step
from workbench.training.data_wait import DataWait
from workbench.training.describe import describe
from workbench.training.examples import Examples
from workbench.training.features import FeatureStore, open_store
from workbench.training.feed import Feed
from workbench.training.forward import token_losses
from workbench.training.lengths import Lengths, measure
from workbench.training.meter import Meter, told_beside
from workbench.training.mixture import read_sources
from workbench.training.optim import check_optimizer, clip, lr_factor, make_optimizer, set_rates
from workbench.training.packing import Plan, group, packs, trees
from workbench.training.source import Source, find_images, refuse_images
from workbench.training.state import Checkpoints
from workbench.training.trackers import Trackers, check_installed
from workbench.training.validation import check_early_stop, means_by, note, settled, told

PAUSE_SECONDS = 0.2
"""How often a paused run looks whether it may go on."""


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
    accelerator = Accelerator(cpu=recipe.model.device == "cpu")
    main = accelerator.is_main_process
    run = Run.create(out, recipe, kind="train", resume=resume) if main else Run(out)
    try:
        with conditions(recipe.train.threads) as asked:
            loop = Loop(accelerator, run, recipe, llava, dataset, asked, show=progress and main)
            with closing(loop.trackers), loop.feed.store:
                finished = loop.run_all()
    except BaseException as error:
        if main:
            run.fail(error)
        raise
    if main:
        held = loop.position
        run.finish(step=held.step, val_loss=held.best, best_step=held.best_step) if finished else run.close()
    accelerator.wait_for_everyone()
    return run


class Loop:
    """One run: everything it needs, put together in the order in which it can fail, and its steps."""

    def __init__(
        self,
        accelerator: Accelerator,
        run: Run,
        recipe: Recipe,
        llava: Llava | None,
        dataset: Dataset | None,
        asked: threading.Event,
        *,
        show: bool,
    ) -> None:
        self.accelerator, self.run, self.recipe, self.asked, self.show = accelerator, run, recipe, asked, show
        self.main, self.spec = accelerator.is_main_process, recipe.train
        spec = self.spec
        check_optimizer(spec.optimizer, llava.device if llava else pick_device(recipe.model.device))
        check_installed(spec.trackers)
        source = read_sources(recipe.data, seed=spec.seed, dataset=dataset, say=self._say)
        check_early_stop(spec, len(source.val))
        files = find_images(source)
        self.llava = llava or build(
            recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=spec.seed
        )
        check_window(self.llava, spec.max_tokens)
        examples, self.val_examples = Examples(source.train, self.llava), Examples(source.val, self.llava)
        name = str(dataset.path if dataset else recipe.data.dataset)
        with accelerator.main_process_first():
            lengths, val = (self._measure(each, name) for each in (examples, self.val_examples))
        groups = prepare(self.llava, spec, say=self._say)
        self.params = [parameter for held in groups for parameter in held.params]
        self.optimizer = make_optimizer(groups, betas=spec.betas, name=spec.optimizer)
        self.scaler = torch.amp.GradScaler(self.llava.device.type, enabled=self.llava.dtype == torch.float16)
        plan = Plan(
            lengths.entries(),
            batch_size=spec.batch_size,
            share=spec.share,
            max_share=spec.max_share,
            max_tokens=spec.pack_tokens,
            seed=spec.seed,
        )
        self.steps_per_epoch = plan.steps_per_epoch
        self.steps = spec.max_steps or max(1, round(spec.epochs * plan.steps_per_epoch))
        sizes = {"images": source.train.keys.height, "image_tokens": self.llava.image_tokens, "steps": self.steps}
        self._say(describe(lengths, val, spec, left_out=source.left_out, **sizes))
        store = self._open_images(source, files)
        rank, world = accelerator.process_index, accelerator.num_processes
        self.feed = Feed(plan, examples, store, self.llava, pack_tokens=spec.pack_tokens, rank=rank, world=world)
        groups_of_val = group(val.entries(), share=spec.share)
        cut = trees(groups_of_val, max_share=spec.max_share, max_tokens=spec.pack_tokens)
        self.val = packs(cut, spec.pack_tokens)
        held = source.val.frame
        self.numbers = {id: number for number, id in enumerate(held["id"])}
        self.tasks = held["task"].fill_null("other").to_list()
        self.datasets = held["dataset"].to_list() if "dataset" in held.columns else []
        self.wait = DataWait(store)
        self.meter = Meter(self.llava, encodes=not store.holds_all and store.cache is None, processes=world)
        self.losses = LossFile(run.path, rank=rank, world=world)
        asks = source.val if spec.answers_every else []
        self.answers = Answers(run.path, self.llava, asks, source.resolve, keeps=self.main)
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep=spec.keep_last)
        self.position = self.checkpoints.restore(self.llava, optimizer=self.optimizer, scaler=self.scaler)
        names, settings = spec.trackers if self.main else [], recipe.model_dump(mode="json")
        self.trackers = Trackers(names, run, settings, step=self.position.step)

    # --- the loop -----------------------------------------------------------------------------------------------

    def run_all(self) -> bool:
        """All steps that are left; False if the run was asked to stop before the last."""
        spec, position = self.spec, self.position
        if self.main:
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
        with self._bar(self.recipe.name, self.steps, "step") as bar:
            bar.advance(position.step)
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
        spec, began, waited = self.spec, time.perf_counter(), 0.0
        seed_step(spec.seed, number, self.accelerator.process_index)
        factor = lr_factor(number, self.steps, warmup=spec.warmup, schedule=spec.schedule)
        rates = set_rates(self.optimizer, factor)
        work, loss = next(stream), torch.zeros((), device=self.llava.device)
        for _ in range(work.pieces):
            asked = time.perf_counter()
            piece = next(stream)
            waited += time.perf_counter() - asked
            losses = token_losses(self.llava, piece.batch, piece.images)
            self.meter.see(piece.batch, losses)
            part = losses.sum() / work.supervised
            if part.requires_grad:  # it does not for text alone where the language model is frozen
                self.scaler.scale(part).backward()
            loss += part.detach()
        self._sum_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = clip(self.params, spec.clip)
        total = self.accelerator.reduce(loss).item()
        if not math.isfinite(total):
            fix = f"lower train.lr, or set train.clip, and start again; {self._latest()}"
            raise TrainingError(f"step {number + 1}", found=f"a loss of {total}", expected="a number", fix=fix)
        self.scaler.step(self.optimizer)
        self.scaler.update()
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
        for pack in self.val[self.accelerator.process_index :: self.accelerator.num_processes]:
            piece = self.feed.piece(pack, self.val_examples)
            losses = token_losses(self.llava, piece.batch, piece.images).cpu().double()
            numbers = torch.tensor([self.numbers[id] for id in piece.batch.ids])
            owners = numbers[piece.batch.conversations.cpu()]
            sums.index_add_(0, owners, torch.stack([losses, torch.ones_like(losses)], 1))
        self._train_mode()
        if self.accelerator.num_processes > 1:  # which talk through their devices
            sums = self.accelerator.reduce(sums.to(self.llava.device)).cpu()
        loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
        seconds, step = round(time.perf_counter() - began, 4), self.position.step
        row = {"step": step, "val_loss": loss, "val_loss_by_task": means_by(self.tasks, sums), "val_seconds": seconds}
        self._log(row | ({"val_loss_by_dataset": means_by(self.datasets, sums)} if self.datasets else {}))
        if note(self.position, loss):
            if self.main:
                self.checkpoints.save_best(self.llava, self.position, self.recipe)
            self.accelerator.wait_for_everyone()

    def _answer(self) -> None:
        """The held-out questions, as the model answers them now."""
        if self.answers.chosen and not self.answers.asked_at(self.position.step):
            self.answers.ask(self.position.step)
            self._train_mode()

    def save(self) -> None:
        """Write a checkpoint to resume from."""
        if self.main:
            stateful = {"optimizer": self.optimizer, "scaler": self.scaler}
            self.checkpoints.save(self.llava, self.position, self.recipe, **stateful)
        self.accelerator.wait_for_everyone()

    # --- small things -------------------------------------------------------------------------------------------

    def _measure(self, examples: Examples, name: str) -> Lengths:
        with self._bar("lengths", len(examples), "conversation") as bar:
            lengths = measure(examples, name=os.path.abspath(name), bar=bar)
        lengths.refuse_unfit(self.spec.max_tokens)
        return lengths

    def _open_images(self, source: Source, files: dict[str, Path]) -> FeatureStore:
        """Every image that is needed, opened and through a frozen tower once if that fits in memory."""
        keys = files.keys()
        store = open_store(self.llava, files, self.spec, say=self._say)
        with self._bar("images", len(keys), "image") as bar:
            refuse_images(store.fill(keys, bar), source, files)
        return store

    def _train_mode(self) -> None:
        """LoRA's dropout is on; a frozen tower stays as it is."""
        self.llava.model.train()
        if not self.llava.vision_trains:
            self.llava.tower.eval()

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes, each of which divided by the tokens of all.

        What no conversation of a step needed has a gradient of zero, on one process as on several.
        """
        for parameter in self.params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes == 1:
            return
        summed = self.accelerator.reduce(torch.cat([p.grad.flatten() for p in self.params]))
        for parameter, grad in zip(self.params, summed.split([p.numel() for p in self.params]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _command(self) -> str | None:
        """What the run is asked to do at this border of steps: `stop`, `save` or nothing. Waits while it is paused."""
        command = None
        if self.main:
            while (command := self.run.control) == "pause" and not self.asked.is_set():
                time.sleep(PAUSE_SECONDS)
            if command is not None:
                self.run.send(None)
        codes = (None, "save", "stop")
        code = 2 if self.asked.is_set() or command == "stop" else codes.index(command)
        if self.accelerator.num_processes > 1:
            code = int(self.accelerator.gather(torch.tensor([code], device=self.llava.device)).max())
        return codes[code]

    def _latest(self) -> str:
        last = self.checkpoints.last
        return f"the checkpoint in {last} is intact" if last.is_dir() else "no checkpoint was saved yet"

    def _log(self, row: dict[str, Any]) -> None:
        if self.main:
            self.run.log(row)
        self.trackers.log(row)

    def _bar(self, name: str, total: int, unit: str) -> Progress:
        return make_bar(name, total=total, unit=unit) if self.show else Progress(name, total=total, unit=unit)

    def _say(self, text: str) -> None:
        if self.show and text:
            print(text, file=sys.stderr, flush=True)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
