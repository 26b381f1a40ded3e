"""A save that is killed before any one of its steps leaves the checkpoint before it, or the new one, whole."""

from __future__ import annotations

import runpy
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.killing import COUNTED
from workbench.model.llava import Llava
from workbench.model.lora import adapter_parameters
from workbench.model.stages import prepare
from workbench.training.optim import make_optimizer
from workbench.training.state import Checkpoints, Position

Made = Callable[..., Any]
SCRIPT = """
import runpy, torch
from pathlib import Path
from workbench.recipe import Recipe
torch.set_num_threads(1)
here = runpy.run_path({here!r})
recipe = Recipe.load({recipe!r})
llava, optimizer = here["ready"](recipe)
here["put"](llava, 3)
kill_before({step}, *{names})
here["save"](Path({folder!r}), recipe, llava, optimizer, 3, {keep})
Path({folder!r}, "left").write_text(str(left))
"""


def ready(recipe: Any) -> tuple[Llava, torch.optim.Optimizer]:
    from workbench.model.llava import build

    llava = build(recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=0)
    groups = prepare(llava, recipe.train, say=lambda text: None)
    return llava, make_optimizer(groups, betas=(0.9, 0.999))


def put(llava: Llava, value: float) -> None:
    for tensor in adapter_parameters(llava.model).values():
        tensor.data.fill_(value)


def save(folder: Path, recipe: Any, llava: Llava, optimizer: Any, step: int, keep: int) -> None:
    states = {"optimizer": optimizer.state_dict(), "scaler": {}}
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep)
    checkpoints.save(llava, Position(step), recipe, **states)
    checkpoints.save_best(llava, Position(step), recipe)


def test_a_save_killed_at_every_step_on_the_disk_is_old_or_new_never_half(
    tmp_path: Path, make_recipe: Made, start: Made
) -> None:
    recipe = make_recipe("unused", "train.lora.r=1")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    llava, optimizer = ready(recipe)
    for step in (1, 2):
        put(llava, step)
        save(tmp_path / "before", recipe, llava, optimizer, step, 2)
    found = []
    # Every renaming; and once amid the files of a new folder, once amid the removal of an old one.
    steps = [(2, step, ("replace", "rename")) for step in range(1, 100)]
    for keep, step, names in [(1, 2, ("replace",)), (2, 20, ("fsync",)), (2, 2, ("rmdir",)), *steps]:
        folder = tmp_path / "after"
        shutil.copytree(tmp_path / "before", folder)
        if keep == 1:  # nothing but the checkpoint that is replaced
            shutil.rmtree(folder / "checkpoints" / "step-0000001")
        fields = {
            "keep": keep,
            "here": __file__,
            "recipe": str(tmp_path / "recipe.yaml"),
            "folder": str(folder),
            "step": step,
        }
        (tmp_path / "script.py").write_text(COUNTED + SCRIPT.format(names=names, **fields))
        process = start(runpy.run_path, str(tmp_path / "script.py"))
        process.join()
        put(llava, 0)
        position, states = Checkpoints(folder / "checkpoints", keep=2).restore(llava)
        assert position.step in (2, 3) and "optimizer" in states
        held = {value.item() for tensor in adapter_parameters(llava.model).values() for value in tensor.unique()}
        assert held == {position.step}, step
        found.append(position.step)
        put(llava, 4)
        save(folder, recipe, llava, optimizer, 4, keep)  # what a kill left behind is in nobody's way
        left = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert left == ["best", "last", f"step-000000{position.step}"][: keep + 1], step
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        shutil.rmtree(folder)
    assert set(found) == {2, 3} and len(found) > 7, found
