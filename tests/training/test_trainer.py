"""The loop on a real, random model: what it writes and prints, what it obeys, and that it learns."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import RunError, TrainingError
from workbench.model.llava import load
from workbench.progress import Progress
from workbench.run import Run
from workbench.training import trainer
from workbench.training.trainer import train

Made = Callable[..., Any]


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics() if "loss" in row]


def test_a_run_leaves_metrics_and_proven_checkpoints(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(
        make_dataset(split=True), "train.eval_every=2", "train.save_every=2", "train.max_steps=6", "train.lr=5e-3"
    )
    run = train(recipe, out=tmp_path / "run")
    assert run.status == "finished"
    rows = run.metrics()
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]["lr"]) == {"language lora", "projector"}
    for key in ("grad_norm", "tokens", "supervised_tokens", "images", "seconds", "tokens_per_s", "data_wait"):
        assert rows[0][key] >= 0
    assert losses(run)[-1] < losses(run)[0]
    values = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in values] == [2, 4, 6]
    assert values[-1]["val_loss_by_task"].keys() == {"conversation"}
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["best", "last", "step-0000004"]
    assert run.checkpoint is not None and run.checkpoint.name == "best"
    assert run.info["val_loss"] == min(row["val_loss"] for row in values)
    assert load(run.path, device="cpu").spec["load"] == "fp32"
    printed = capsys.readouterr().err
    for text in ("language lora", "16 conversations about 5 images", "3 to validate on", "without sharing", "6 steps"):
        assert text in printed, printed


def test_the_recipe_s_epochs_give_the_number_of_steps(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(
        make_dataset(), "train.max_steps=null", "train.epochs=1.5", "train.batch_size=8", "data.val_fraction=0"
    )
    run = train(recipe, out=tmp_path / "run", progress=False)  # 19 conversations: 3 steps an epoch
    assert len(losses(run)) == 4
    assert sum(row["tokens"] for row in run.metrics()) > 0
    assert not (run.path / "checkpoints" / "best").exists(), "nothing to choose by"


def test_losses_do_not_depend_on_packs_or_sharing(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    dataset = make_dataset()
    runs = []
    # One group of conversations for each image and whole steps of them: the same conversations make up every step.
    for number, changes in enumerate(
        ({}, {"pack_tokens": 1}, {"pack_tokens": 700}, {"share": "false", "pack_tokens": 600})
    ):
        overrides = [f"train.{key}={value}" for key, value in changes.items()]
        recipe = make_recipe(dataset, "train.batch_size=19", "data.val_fraction=0", *overrides)
        runs.append(train(recipe, out=tmp_path / str(number), progress=False))
    for other in runs[1:]:
        assert losses(other) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert runs[3].metrics()[0]["tokens"] > 1.5 * runs[0].metrics()[0]["tokens"]


def test_align_moves_the_projector_alone_and_hands_it_on(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, make_llava: Made
) -> None:
    dataset = make_dataset(each=1)
    align = make_recipe(dataset, "train.stage=align", "train.language=frozen", "train.max_steps=2")
    llava = make_llava(align)
    before = {name: tensor.clone() for name, tensor in llava.model.state_dict().items()}
    run = train(align, out=tmp_path / "align", llava=llava, dataset=dataset, progress=False)
    after = llava.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(".multi_modal_projector." in name for name in moved)
    tune = make_recipe(dataset, f"model.projector_from={run.path}", "model.load=4bit", "train.max_steps=1")
    tuned = make_llava(tune)
    for name, tensor in tuned.projector.state_dict().items():
        assert torch.equal(tensor, llava.projector.state_dict()[name])
    assert train(tune, out=tmp_path / "tune", llava=tuned, dataset=dataset, progress=False).status == "finished"


def test_a_tower_that_trains_sees_pixels(
    tmp_path: Path, make_dataset: Made, make_recipe: Made, make_llava: Made
) -> None:
    recipe = make_recipe(make_dataset(), "train.vision=full", "train.vision_lr=1e-4")
    llava = make_llava(recipe)
    before = llava.tower.state_dict()["embeddings.patch_embedding.weight"].clone()
    run = train(recipe, out=tmp_path / "run", llava=llava, progress=False)
    assert run.metrics()[0]["lr"]["vision full"] == pytest.approx(1e-4)
    assert not torch.equal(before, llava.tower.state_dict()["embeddings.patch_embedding.weight"])


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    recipe = make_recipe(make_dataset(), "train.lr=1e30", "train.clip=null")
    told = r"step 2: found a loss of nan.*lower train.lr.*no checkpoint was saved yet"
    with pytest.raises(TrainingError, match=told):
        train(recipe, out=tmp_path / "run", progress=False)
    assert Run.open(tmp_path / "run").status == "failed"


def test_a_finished_run_is_not_run_into(tmp_path: Path, make_dataset: Made, make_recipe: Made) -> None:
    recipe = make_recipe(make_dataset(each=1), "train.max_steps=1")
    train(recipe, out=tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="a finished run"):
        train(recipe, out=tmp_path / "run", resume=True, progress=False)


# --- what a run is asked while it works ---------------------------------------------------------------------------


class Watcher(threading.Thread):
    """Does something once the run has logged a step."""

    def __init__(self, run: Path, act: Callable[[Run], None]) -> None:
        super().__init__(daemon=True)
        self.run_path, self.act, self.seen = run, act, -1
        self.start()

    def run(self) -> None:
        while not losses(Run(self.run_path)):
            time.sleep(0.01)
        self.act(Run(self.run_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stop_and_sigterm_save_and_leave_a_run_to_resume(
    number: signal.Signals,
    tmp_path: Path,
    make_dataset: Made,
    make_recipe: Made,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    recipe = make_recipe(make_dataset(), "train.max_steps=100")
    Watcher(tmp_path / "run", lambda run: run.send("stop"))
    run = train(recipe, out=tmp_path / "run", progress=False)
    assert run.status == "stopped" and run.control is None
    done = len(losses(run))
    assert 0 < done < 100
    with pytest.raises(RunError, match="--resume"):
        train(recipe, out=tmp_path / "run", progress=False)
    held = signal.signal(number, signal.SIG_DFL)  # under `nohup` one of them is ignored, and stays so
    request.addfinalizer(lambda: signal.signal(number, held))

    def terminate(run: Run) -> None:
        while len(losses(run)) == done:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    Watcher(tmp_path / "run", terminate)
    bars: list[Progress] = []
    monkeypatch.setattr(trainer, "make_bar", lambda *args, **more: bars.append(Progress(*args, **more)) or bars[-1])
    run = train(recipe, out=tmp_path / "run", resume=True)
    assert run.status == "stopped"
    assert (bars[-1].before, bars[-1].done) == (done, len(losses(run))), "the steps of before say nothing of its pace"
    assert [row["step"] for row in run.metrics()] == list(range(1, len(losses(run)) + 1)), "no step twice, none missing"
    assert done < len(losses(run)) < 100
    assert signal.getsignal(number) is signal.SIG_DFL


def test_pause_waits_at_the_border_of_a_step_and_save_saves(
    tmp_path: Path, make_dataset: Made, make_recipe: Made
) -> None:
    waited: list[int] = []

    def pause(run: Run) -> None:
        run.send("pause")
        while waited[-2:] != [waited[-1]] * 2 if waited else True:  # it stands still for a second and a half
            waited.append(len(losses(run)))
            time.sleep(1.5)
        run.send("save")
        while not (run.path / "checkpoints" / "last").is_dir():
            time.sleep(0.01)
        time.sleep(0.5)  # it once went on from here
        waited.append(len(losses(run)))
        run.send("stop")

    Watcher(tmp_path / "run", pause)
    run = train(make_recipe(make_dataset(each=1), "train.max_steps=1000"), out=tmp_path / "run", progress=False)
    assert run.status == "stopped"
    assert waited[-1] == waited[-2] == len(losses(run)) < 1000
