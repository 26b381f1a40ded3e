"""The plan of a run: what it says, what it leaves unread, what it advises, and that training does as planned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.training.test_shards import run_ranks
from workbench.cli import main
from workbench.errors import ModelError, RunError, TrainingError, WorkbenchError
from workbench.run import Run
from workbench.training.dry_run import Measured
from workbench.training.forward import token_losses
from workbench.training.plan import _lighter, plan, settle
from workbench.training.room import MARGIN, free_memory
from workbench.training.trainer import train

Made = Callable[..., Any]


@pytest.fixture
def unread(parts: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """The parts, with weights that cannot be read."""
    folders = {}
    for key, name in (("vision", "clip"), ("language", "llama")):
        folders[key] = str(shutil.copytree(parts[name], tmp_path / name))
        Path(folders[key], "model.safetensors").write_bytes(b"not weights")
    return folders


def test_a_plan_reads_no_weights_and_says_what_training_then_does(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, unread: dict[str, str]
) -> None:
    dataset = make_dataset(split=True)
    recipe = make_recipe(dataset, "train.max_steps=null")
    forecast = plan(recipe.with_overrides(*(f"model.{key}={path}" for key, path in unread.items())))
    run = train(recipe, out=tmp_path / "run", progress=False)
    rows = [row for row in run.metrics() if "loss" in row]
    counts = forecast.counts
    assert counts.steps == len(rows)
    assert counts.tokens == sum(row["tokens"] for row in rows)
    assert counts.supervised_tokens == sum(row["supervised_tokens"] for row in rows)
    assert (counts.conversations, counts.images, counts.validation) == (16, 5, 3)
    assert counts.sharing > 1.2 and counts.image_tokens == 9 * sum(row["images"] for row in rows)
    assert forecast.fits and forecast.trains and not forecast.advice
    text = str(forecast)
    for part in ("language lora", "1.0e-03", "[image: 9 tokens]", "⟦", "it fits", "16 conversations about 5 images"):
        assert part in text, text
    html = forecast._repr_html_()
    assert "background-color" in html and "it fits" in html
    told = json.loads(json.dumps(forecast.summary()))
    assert told["memory"]["peak"] == forecast.memory.peak and told["padding_tokens"] == 0


def test_a_projector_that_is_not_there_is_refused_as_in_training(make_dataset: Made, make_recipe: Made) -> None:
    """The plan once said `fits`, and training refused."""
    recipe = make_recipe(make_dataset(images=2, each=1))
    with pytest.raises(ModelError, match="runs/nope"):
        plan(recipe.with_overrides("model.projector_from=./runs/nope"))


@pytest.mark.parametrize("processes", [0, -1, 1.5, "2", True, None])
def test_what_is_no_number_of_processes_is_refused(processes: Any, make_dataset: Made, make_recipe: Made) -> None:
    """0 was a ZeroDivisionError; -1 and 1.5 were taken."""
    recipe, told = make_recipe(make_dataset(images=2, each=1)), "^processes: found .*; expected a whole number of at le"
    for ask in (plan, wb.cards):
        with pytest.raises(WorkbenchError, match=told):
            ask(recipe, processes=processes)


def test_what_is_too_long_is_listed_by_id(make_dataset: Made, make_recipe: Made) -> None:
    whole = plan(make_recipe(make_dataset()))
    limit = whole.counts.longest[1] - 1
    forecast = plan(make_recipe("unused", f"train.max_tokens={limit}"), whole.recipe.data.dataset)
    assert (whole.counts.longest[0], limit + 1) in forecast.too_long
    assert forecast.fits and not forecast.trains
    assert whole.counts.longest[0] in str(forecast) and "refuses" in str(forecast)
    with pytest.raises(TrainingError, match="all too long"):
        plan(make_recipe("unused", "train.max_tokens=5"), whole.recipe.data.dataset)


def test_a_plan_counts_and_shows_what_is_left_beside_what_is_refused(make_dataset: Made, make_recipe: Made) -> None:
    """It once told images of conversations that it refused, validated on all of them, and showed one of them."""
    text = plan(make_recipe(make_dataset(images=1, split=True, name="text"))).counts.longest[1]
    forecast = plan(make_recipe(make_dataset(split=True), f"train.max_tokens={text}", "train.eval_every=1"))
    counts, refused = forecast.counts, [id for id, _ in forecast.too_long]
    assert (counts.conversations, counts.images, counts.image_tokens, counts.validation) == (1, 0, 0, 0)
    assert len(refused) == 18 and "there are no images" in str(forecast)
    assert forecast.strip.conversation.id == "text"


def test_numbers_are_told_as_they_are(make_dataset: Made, make_recipe: Made) -> None:
    dataset = make_dataset(images=2, each=1, split=True)
    forecast = plan(make_recipe(dataset, "train.batch_size=1000000", "train.max_steps=3", "train.eval_every=1"))
    assert "2 conversations about 1 image to train on, 1 to validate on" in str(forecast)
    assert "3 steps of 2 conversations, all there are (train.batch_size: 1,000,000): 3.00 epochs" in str(forecast)
    recipe = make_recipe(make_dataset(images=1, each=1, split=True, name="text"), "train.max_steps=1")
    text = plan(recipe)
    assert "1 conversation about 0 images to train on" in str(text) and "1 step of 1 conversation" in str(text)
    refused = str(plan(recipe.with_overrides(f"train.max_tokens={text.counts.longest[1]}")))
    assert "1 conversation that training refuses" in refused and "refuses 1 conversation, see above" in refused


def test_the_advice_makes_it_fit_and_fit_keeps_the_batch(make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(make_dataset(), "train.checkpointing=off", "train.batch_size=18")
    peak = plan(recipe).memory.peak
    small = recipe.with_overrides(f"train.memory_gb={peak * 0.7 / 1e9}")
    forecast = plan(small)
    assert not forecast.fits and "it does not fit: set train." in str(forecast)
    changes = [part.replace(": ", "=") for part in forecast.advice.removeprefix("set ").split(" and ")]
    assert plan(small.with_overrides(*changes)).fits
    fitted = plan(small, fit=True)
    assert fitted.fits and fitted.recipe.train.batch_size == 18
    assert fitted.counts.supervised_tokens == forecast.counts.supervised_tokens
    hopeless = plan(recipe.with_overrides("train.memory_gb=0.0001"))
    assert not hopeless.fits and " free, and train.fit: true" in hopeless.advice


def test_time_counts_the_tower_and_names_what_it_leaves_out(make_dataset: Made, make_recipe: Made) -> None:
    forecast = plan(make_recipe(make_dataset(), "train.max_steps=3"))
    assert 0 < forecast.tower_seconds < forecast.seconds and forecast.by_dry_run is None
    assert "of it the frozen tower's; not counted: the optimiser, opening images, validation, saving" in str(forecast)
    measured = replace(forecast, measured=Measured(peak=1, seconds=2.0, device="cpu", loading=1))
    assert measured.by_dry_run is not None
    tokens = forecast.counts.tokens * forecast.counts.epochs
    pace = 2.0 / (sum(tree.tokens for tree in forecast.worst) * min(forecast.pieces, 2))
    assert measured.by_dry_run == pytest.approx(tokens * pace + forecast.tower_seconds)
    assert "s by the dry run (at least " in str(measured) and "not counted: opening images" in str(measured)
    trained = plan(make_recipe("unused", "train.vision=full"), forecast.recipe.data.dataset)
    assert trained.tower_seconds == 0 and "frozen tower's" not in str(trained), "it is part of the step"


def test_processes_share_weights_only_in_shards(make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(make_dataset(), "train.language=full", "train.checkpointing=off")
    one, whole = plan(recipe), plan(recipe, processes=4)
    assert "of each of 4 processes" in str(whole) and whole.seconds < one.seconds
    assert whole.memory.items["language model"] == one.memory.items["language model"]
    assert whole.pieces <= one.pieces and whole.counts == one.counts
    shared = recipe.with_overrides("train.shard=true")
    few, many = plan(shared, processes=4).memory.items, plan(shared, processes=10**9).memory.items
    assert (
        few["optimiser"] == one.memory.items["optimiser"] // 4
        and few["vision tower"] == one.memory.items["vision tower"]
    )
    cut = one.memory.items["language model"] - one.parameters["language model"] * 4  # buffers stay whole
    assert few["language model"] - many["language model"] == (one.memory.items["language model"] - cut) // 4
    assert many["optimiser"] == 0 < many["gradients"]


def test_training_obeys_its_plan(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    recipe = make_recipe(dataset, "train.batch_size=18")
    plain = train(recipe, out=tmp_path / "plain", progress=False)
    peak = plan(recipe).memory.peak
    seen: list[bool] = []

    def looked(llava: Any, *rest: Any) -> Any:
        seen.append(llava.model.model.language_model.is_activation_checkpointing)
        return token_losses(llava, *rest)

    monkeypatch.setattr("workbench.training.placement.token_losses", looked)
    tight = recipe.with_overrides(f"train.memory_gb={peak * 0.8 / 1e9}")
    run = train(tight, out=tmp_path / "tight", progress=False)
    assert all(seen)
    assert [row["loss"] for row in run.metrics() if "loss" in row] == [
        row["loss"] for row in plain.metrics() if "loss" in row
    ]
    fitted = train(tight.with_overrides("train.fit=true"), out=tmp_path / "fitted", progress=False)
    held = fitted.recipe.train
    assert held.batch_size == 18 and (held.pack_tokens, held.checkpointing) != (4096, "auto")


def test_the_command_says_it_in_json_and_by_its_status(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make_dataset()
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe("elsewhere").to_yaml())
    assert main(["plan", str(path), str(dataset.path), "--json", "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["measured"]["peak"] > 0 and told["measured"]["seconds"] > 0
    assert told["seconds_by_dry_run"] > told["seconds_of_tower"] > 0
    assert main(["plan", str(path), str(dataset.path), "--set", "train.memory_gb=0.0001"]) == 1
    assert "it does not fit" in capsys.readouterr().out
    assert main(["plan", str(path)]) == 1
    assert "elsewhere" in capsys.readouterr().err


def test_a_fitted_run_is_reused_and_goes_on_with_what_was_chosen(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    recipe = make_recipe(make_dataset(), "train.fit=true", "train.max_steps=2")
    first = wb.train(recipe, out=tmp_path / "run", progress=False)
    assert first.recipe.train != recipe.train
    again = wb.train(recipe, out=tmp_path / "run", reuse=True, progress=False)
    assert again.info == first.info, "it was not trained again"
    with pytest.raises(RunError, match="a finished run"):
        wb.train(recipe.with_overrides("train.lr=0.5"), out=tmp_path / "run", reuse=True, progress=False)
    with pytest.raises(RunError, match="a finished run"):  # nothing chooses them here
        wb.train(recipe.with_overrides("train.fit=false"), out=tmp_path / "run", reuse=True, progress=False)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(info | {"status": "running"}))
    tight = recipe.with_overrides("train.memory_gb=0.0001")
    assert settle(tight, tmp_path / "run", resume=True).train.pack_tokens == first.recipe.train.pack_tokens


def test_a_new_start_after_a_failed_run_is_fitted_anew(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    """It once took what had been chosen for the run that failed."""
    wild = ("train.lr=1e30", "train.clip=null", "train.log_every=2")
    recipe = make_recipe(make_dataset(), "train.fit=true", "train.max_steps=2")
    with pytest.raises(TrainingError, match="a loss of nan"):
        train(recipe.with_overrides(*wild), out=tmp_path / "run", progress=False)
    peak = plan(recipe.with_overrides("train.fit=false", "train.checkpointing=off")).memory.peak
    tight = recipe.with_overrides(f"train.memory_gb={peak * 0.7 / 1e9}")
    assert Run.open(tmp_path / "run").recipe.train.pack_tokens != plan(tight).recipe.train.pack_tokens
    run = train(tight, out=tmp_path / "run", progress=False)
    assert run.recipe.train.pack_tokens == plan(tight).recipe.train.pack_tokens


def test_fit_chooses_for_the_processes_there_are(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start_ranks: Made
) -> None:
    """`train` of several processes chooses what `plan --processes` says: where a model is cut, more fits."""
    recipe = make_recipe(
        make_dataset(), "train.fit=true", "train.shard=true", "train.language=full", "train.max_steps=1"
    )
    as_it_is = recipe.with_overrides("train.fit=false", "train.checkpointing=on", "train.pack_tokens=512")
    one, two = (plan(as_it_is, processes=number).memory.peak for number in (1, 2))
    tight = recipe.with_overrides(f"train.memory_gb={(one + two) / 2e9 / MARGIN}")
    assert not plan(tight).fits and plan(tight, processes=2).fits
    run = run_ranks(start_ranks, tight, tmp_path / "run")
    assert run.recipe.train == plan(tight, processes=2).recipe.train != tight.train


def test_a_plan_for_a_card_leaves_out_what_lies_in_the_machine_s_own_memory(
    make_dataset: Made, make_recipe: Made
) -> None:
    recipe = make_recipe(make_dataset(), "model.load=bf16", "train.memory_gb=80")
    here, card = plan(recipe.with_overrides("model.device=cpu")), plan(recipe.with_overrides("model.device=cuda"))
    assert here.held and not card.held, "kept features"
    assert here.memory.items["images"] == card.memory.items["images"] + here.held
    assert not card.memory.items["kernels"] and "on cuda" in str(card) and "on cpu" in str(here)


def test_a_paged_optimiser_is_planned_for_the_device_that_is_asked_for(make_dataset: Made, make_recipe: Made) -> None:
    """The plan once looked at the CPU that stands in for a GPU which is not here."""
    paged = make_recipe(make_dataset(), "train.memory_gb=80", "train.optimizer=paged_adamw8bit")
    assert plan(paged.with_overrides("model.device=cuda")).fits
    with pytest.raises(TrainingError, match="train.optimizer: paged_adamw8bit: found the device cpu"):
        plan(paged)


@pytest.mark.parametrize(
    "cut", ["train.shard=true", "train.deepspeed={zero_optimization: {stage: 3}}", "train.shard=false"]
)
def test_quantised_weights_are_not_advised_where_they_cannot_be_cut(cut: str, make_recipe: Made) -> None:
    changes = [change for some in _lighter(make_recipe("unused", cut, "train.language=full")) for change in some]
    assert ("model.load=4bit" in changes) is (cut == "train.shard=false")
    assert "train.language=lora" in changes


def test_processes_on_one_cpu_share_its_memory(make_recipe: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    train, cpu = make_recipe().train, torch.device("cpu")
    monkeypatch.setattr("workbench.training.room._left_by_the_container", lambda: 8_000_000)
    assert [free_memory(cpu, train, number) for number in (1, 4)] == [8_000_000, 2_000_000]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two of four on each of two machines
    assert free_memory(cpu, train, 4) == 4_000_000
    assert free_memory(cpu, make_recipe("unused", "train.memory_gb=1").train, 4) == 1_000_000_000
