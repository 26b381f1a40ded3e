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

from workbench.errors import CheckpointError
from workbench.model.checkpoint import load_checkpoint, read_manifest
from workbench.model.proof import check_files
from workbench.run import Run
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
