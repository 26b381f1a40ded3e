"""Resume is equality (law 4): killed at any moment and gone on with, a run ends in the bits of an uninterrupted one."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import CheckpointError, DiskError, TrainingError
from workbench.model.checkpoint import load_checkpoint, read_manifest
from workbench.model.proof import check_files
from workbench.run import Run
from workbench.training.state import Checkpoints
from workbench.training.trainer import train

Made = Callable[..., Any]
TIMES = (
    "seconds", "tokens_per_s", "data_wait", "data_wait_fraction", "val_seconds", "flops_fraction", "memory",
)  # fmt: skip


def wait_for(run: Path, lines: int, process: Any) -> None:
    """Until the run has logged so many lines."""
    while len(Run(run).metrics()) < lines:
        assert process.is_alive(), "ended too early"
        time.sleep(0.005)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in Run.open(run).metrics()]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    llava = load_checkpoint(run / "checkpoints" / name, device="cpu")
    return {key: p.data for key, p in llava.model.named_parameters() if ".lora_" in key or "projector" in key}


def assert_same(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    for name in ("last", "best"):
        held, expected = weights(one, name), weights(other, name)
        assert held.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(held[key], tensor), key


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(
    optimizer: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made
) -> None:
    overrides = ["train.max_steps=9", "train.save_every=2", "train.eval_every=3", "train.lora.dropout=0.1"]
    eight = ["train.optimizer=adamw8bit", "train.lora.r=64"]  # tensors of 4,096 numbers, which are held in 8 bits
    recipe = make_recipe(make_dataset(), "model.load=4bit", *overrides, *(eight if optimizer == "adamw8bit" else []))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, out=whole, progress=False)
    chance = random.Random(4)
    for lines in (2, 5, 8):  # then a little later: in a step, in a validation, in a save
        process = start(train, recipe, out=broken, resume=True, progress=False)
        wait_for(broken, lines, process)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(recipe, out=broken, resume=True, progress=False)
    assert_same(broken, whole)


def test_a_kill_between_two_saves_repeats_the_steps_since_the_last_one(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, start: Made
) -> None:
    recipe = make_recipe(make_dataset(), "train.max_steps=8", "train.save_every=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, out=whole, progress=False)
    process = start(train, recipe, out=broken, progress=False)
    wait_for(broken, 5, process)
    process.kill()
    process.join()
    assert Run.open(broken).status == "died"
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # torn by the kill
    train(recipe, out=broken, resume=True, progress=False)
    assert_same(broken, whole)


@pytest.mark.parametrize("name, left", [("checkpoint.json", 0), ("trainer.pt", 100)])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    name: str, left: int, tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """It neither stopped the run from saving, nor was it kept as one of the latest in the place of a whole one."""
    recipe = make_recipe(make_dataset(each=2), "train.max_steps=4", "train.save_every=1", "train.keep_last=3")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, out=whole, progress=False)
    shutil.copytree(whole, broken)
    info = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps(info | {"status": "running"}))
    hurt = broken / "checkpoints" / "last" / name
    hurt.write_bytes(hurt.read_bytes()[:left])
    (broken / "checkpoints" / ".last.00ff.tmp").mkdir()
    capsys.readouterr()
    train(recipe, out=broken, resume=True)
    told = next(line for line in capsys.readouterr().err.splitlines() if "is damaged" in line)
    assert name in told and str(broken / "checkpoints" / "damaged-1") in told and "step-0000003 is taken" in told
    assert_same(broken, whole)
    kept = {folder.name: folder for folder in (broken / "checkpoints").iterdir()}
    assert sorted(kept) == ["best", "damaged-1", "last", "step-0000002", "step-0000003"]
    assert (kept["damaged-1"] / name).stat().st_size == left
    for each in ("last", "step-0000002", "step-0000003"):
        check_files(kept[each], read_manifest(kept[each])["files"])
    (broken / "run.json").write_text(json.dumps(info | {"status": "running"}))
    for folder in (broken / "checkpoints").iterdir():
        (folder / "projector.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="projector.safetensors: found 0 bytes"):
        train(recipe, out=broken, resume=True, progress=False)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_run_that_was_begun_on_another_device_goes_on(
    optimizer: str, tmp_path: Path, make_dataset: Made, make_recipe: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the optimiser names the device it was saved from, which need not be here."""
    eight = [f"train.optimizer={optimizer}", "train.lora.r=64"]
    recipe = make_recipe(make_dataset(each=2), "train.max_steps=4", "train.save_every=2", "train.keep_last=2", *eight)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:63")
        train(recipe, out=whole, progress=False)
    shutil.copytree(whole, moved)
    info = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(info | {"status": "running"}))
    shutil.rmtree(moved / "checkpoints" / "last")
    (moved / "checkpoints" / "step-0000002").rename(moved / "checkpoints" / "last")
    with pytest.raises(RuntimeError, match="cuda|CUDA"):
        torch.load(moved / "checkpoints" / "last" / "trainer.pt")
    train(recipe, out=moved, resume=True, progress=False)
    assert_same(moved, whole)


FOUR = ("train.max_steps=4", "train.save_every=2", "train.keep_last=2")


def unfinished(recipe: Any, out: Path) -> Path:
    """A run of `FOUR` that was killed at its end, with a checkpoint after the second step."""
    train(recipe, out=out, progress=False)
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(info | {"status": "running"}))
    shutil.rmtree(out / "checkpoints" / "last")
    (out / "checkpoints" / "step-0000002").rename(out / "checkpoints" / "last")
    return out


def sayings(words: list[str]) -> str:
    rows = []
    for number, word in enumerate(words):
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": word}]
        rows.append({"id": str(number), "conversations": turns})
    return json.dumps(rows)


@pytest.mark.parametrize("change", ["words", "order", "number"])
def test_a_run_does_not_go_on_with_other_data(change: str, tmp_path: Path, make_recipe: Made) -> None:
    """It did, in silence: what it had learned from was neither the one nor the other."""
    words = ["red", "green", "blue", "grey", "pink", "gold", "cyan", "lime"]
    file = tmp_path / "rows.json"
    file.write_text(sayings(words))
    recipe = make_recipe(file, "data.val_fraction=0", *FOUR)
    run = unfinished(recipe, tmp_path / "run")
    file.write_text(
        {"words": sayings(["tan", *words[1:]]), "number": sayings(words[:-1])}.get(change)
        or json.dumps(json.loads(sayings(words))[::-1])
    )
    with pytest.raises(TrainingError, match="run: found conversations to train on that it did not begin with.*--out"):
        train(recipe, out=run, resume=True, progress=False)
    file.write_text(sayings(words))
    assert train(recipe, out=run, resume=True, progress=False).status == "finished"


def test_a_run_goes_on_with_other_settings_of_memory_and_saving(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory that ran out was to be helped by settings that --resume refused."""
    recipe = make_recipe(make_dataset(each=2), *FOUR)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe, out=whole, progress=False)
    unfinished(recipe, broken)
    smaller = recipe.with_overrides("train.pack_tokens=64", "train.checkpointing=on", "train.save_every=1")
    capsys.readouterr()
    run = train(smaller, out=broken, resume=True)
    assert "goes on with train.pack_tokens: 64 (it was None)" in capsys.readouterr().err
    assert run.status == "finished" and run.recipe == smaller
    for row, expected in zip(metrics(broken), metrics(whole), strict=True):
        loss = "loss" if "loss" in row else "val_loss"
        assert row[loss] == pytest.approx(expected[loss], rel=1e-4), row["step"]


def test_a_run_that_saved_nothing_says_that_it_begins_again(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(make_dataset(each=2), *FOUR)
    run = unfinished(recipe, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    capsys.readouterr()
    train(recipe, out=run, resume=True)
    assert "no checkpoint was saved: begins again at step 1; 5 lines of metrics go" in capsys.readouterr().err


def test_too_small_a_disk_is_told_before_the_first_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    free = shutil.disk_usage(tmp_path).free
    checkpoints.check_room(free // 8, free // 8, 9, best=True)
    with pytest.raises(DiskError, match=r"checkpoints: found [\d.,]+ GB free; expected [\d.,]+ GB, for 3 checkpoints"):
        checkpoints.check_room(free // 8, free // 4, 9, best=True)
    (checkpoints.folder / "last").mkdir(parents=True)  # one that is there already
    checkpoints.check_room(free // 8, free // 4, 9, best=True)
