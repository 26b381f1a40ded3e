"""A run folder has one writer, says what it was made from, and loses nothing when it is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import run as runs
from workbench.errors import RunError
from workbench.recipe import Recipe
from workbench.resources import write_atomic
from workbench.run import Run, compare

OVERRIDES = ["train.lr=1e-3", "train.seed=0"]
RECIPE = Recipe.load("tiny-align", OVERRIDES)


def make(path: Path, *overrides: str, finish: bool = True) -> Run:
    run = Run.create(path, RECIPE.with_overrides(*overrides), kind="train")
    run.log({"step": 1, "loss": 2.0})
    run.finish() if finish else run.fail(ValueError("no"))
    return run


# --- what is in it --------------------------------------------------------------------------------------------


def test_a_run_says_what_it_was_made_from(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a", RECIPE, kind="train") as run:
        assert run.status == "running"
        run.log({"step": 1, "loss": 0.5, "where": tmp_path})
    again = Run.open(tmp_path / "a")
    assert again.recipe == RECIPE and again.status == "finished"
    info = again.info
    assert info["kind"] == "train" and info["name"] == "tiny-align" and info["seconds"] > 0
    assert {"python", "torch", "transformers", "peft"} <= set(info["versions"])
    assert set(info["platform"]) == {"system", "machine", "cores"}
    assert info["started"] <= info["finished"]
    if info["commit"] is not None:
        assert len(info["commit"]["id"]) == 40 and isinstance(info["commit"]["dirty"], bool)


def test_nothing_in_it_names_the_machine_or_its_user(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    text = (run.path / "run.json").read_text()
    assert os.uname().nodename not in text and str(Path.home()) not in text if os.name != "nt" else True


def test_a_mapping_is_a_recipe_too_but_not_of_training(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a", {"images": None, "count": 3}, kind="quickstart") as run:
        assert run.settings == {"images": None, "count": 3}
    with pytest.raises(RunError, match="no training recipe .*images"):
        _ = run.recipe


def test_an_error_inside_is_kept_and_the_run_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run.create(tmp_path / "a", RECIPE, kind="train") as run:
        run.log({"step": 1})
        _ = 1 / 0
    run = Run.open(tmp_path / "a")
    assert run.status == "failed" and run.info["error"] == "ZeroDivisionError: division by zero"
    with Run.create(tmp_path / "a", RECIPE, kind="train", resume=True) as again:
        assert again.info["resumed"] == 1 and again.info["error"] is None
    assert again.status == "finished"


def test_a_run_whose_folder_is_gone_tells_the_error_it_failed_with(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run.create(tmp_path / "a", RECIPE, kind="train") as run:
        (tmp_path / "a" / "run.json").unlink()
        _ = 1 / 0
    assert run.status == "damaged" and not run._lock.mine


def test_the_best_checkpoint_goes_before_the_last(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    assert run.checkpoint is None
    write_atomic(run.path / "checkpoints" / "last" / "file", "x")
    assert run.checkpoint == run.path / "checkpoints" / "last"
    write_atomic(run.path / "checkpoints" / "best" / "file", "x")
    assert run.checkpoint == run.path / "checkpoints" / "best"


def test_a_checkpoint_whose_replacement_was_cut_is_found(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    write_atomic(run.path / "checkpoints" / ".best.old" / "file", "x")
    assert run.checkpoint == run.path / "checkpoints" / "best"


# --- metrics --------------------------------------------------------------------------------------------------

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
rows = st.lists(st.dictionaries(st.text("abc_", min_size=1), values, max_size=4), max_size=6)


@given(rows, st.integers(1, 60))
def test_a_torn_last_line_costs_that_line_only(tmp_path: Path, logged: list[dict[str, object]], cut: int) -> None:
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    for row in logged:
        run.log(row)
    run.close()
    whole = run.metrics()
    assert len(whole) == len(logged)
    (tmp_path / "metrics.jsonl").open("a").write(
        '{"step": 7, "loss": 0.12345, "seconds": 1.5, "tokens": 300, "x": 1'[:cut]
    )
    assert run.metrics() == whole
    run.log({"step": 8})
    run.close()
    assert run.metrics() == [*whole, {"step": 8}]


def test_lines_are_json_for_everybody(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log({"loss": float("nan"), "norm": float("inf"), "path": tmp_path, "rows": (1, 2.5), "text": "é\n"})
    run.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {"loss": None, "norm": None, "path": str(tmp_path), "rows": [1, 2.5], "text": "é\n"}
    assert json.loads(line, parse_constant=pytest.fail) == expected


def test_rewind_drops_what_a_resumed_run_will_log_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 6):
        run.log({"step": step})
    run.rewind(3)
    run.log({"step": 4})
    run.close()
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]


# --- control --------------------------------------------------------------------------------------------------


def test_control_is_read_by_the_run_and_written_by_anybody(tmp_path: Path) -> None:
    run, notebook = make(tmp_path / "a"), Run.open(tmp_path / "a")
    assert run.control is None
    for command in ("pause", "stop", None, "save", None):
        notebook.send(command)
        assert run.control == command
    with pytest.raises(RunError, match="found the command 'halt'; expected stop, save, pause"):
        notebook.send("halt")


@pytest.mark.parametrize(
    ("commands", "asked"),
    [
        (["pause", "save"], {"pause", "save"}),
        (["save", "pause", "pause"], {"pause", "save"}),
        (["pause", "save", "stop", "save"], {"stop"}),
        (["pause", "save", None], set()),
    ],
)
def test_a_paused_run_is_asked_to_save_and_stays_paused(tmp_path: Path, commands: list[str], asked: set[str]) -> None:
    """`save` once took the place of `pause`, and the run went on."""
    run = make(tmp_path / "a")
    for command in commands:
        run.send(command)
    assert run.commands == asked
    run.obeyed("save")
    assert run.commands == asked - {"save"}


def test_what_a_starting_run_was_asked_is_kept_and_what_another_was_asked_is_not(tmp_path: Path) -> None:
    """A command to a starting run once was `a folder with 'control.json' in it that is no run`."""
    for name, process in (("mine", os.getpid()), ("other", os.getpid() + 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "process.json").write_text(json.dumps({"process": process}))
        Run(folder).send("pause")
        with Run.create(folder, RECIPE, kind="train") as run:
            assert run.control == ("pause" if name == "mine" else None)


@pytest.mark.parametrize("text", ["", "[]", '{"command": "rm"}', '{"command": ["stop"]}', "{"])
def test_a_broken_control_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "control.json").write_text(text)
    assert Run(tmp_path).control is None


# --- a folder in the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_written_again(tmp_path: Path, resume: bool) -> None:
    make(tmp_path / "a")
    on = rf"choose another --out \(--set model.checkpoint={tmp_path / 'a'} trains on from it\)"
    with pytest.raises(RunError, match=f"a: found a finished run; expected a new folder; {on}"):
        Run.create(tmp_path / "a", RECIPE, kind="train", resume=resume)


def test_an_unfinished_run_goes_on_only_when_asked(tmp_path: Path) -> None:
    make(tmp_path / "a", finish=False)
    with pytest.raises(RunError, match=r"found an unfinished run \(failed\); add --resume"):
        Run.create(tmp_path / "a", RECIPE, kind="train")
    Run.create(tmp_path / "a", RECIPE, kind="train", resume=True).close()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_its_first_step_makes_room_for_a_corrected_recipe(
    tmp_path: Path, resume: bool
) -> None:
    """It once said `add --resume`, and with --resume `another recipe`."""
    with pytest.raises(ValueError), Run.create(tmp_path / "a", RECIPE, kind="train") as run:
        run.rewind(0)
        run.send("stop")
        raise ValueError("a bad recipe")
    corrected = RECIPE.with_overrides("train.lr=0.5")
    with Run.create(tmp_path / "a", corrected, kind="train", resume=resume) as again:
        assert again.recipe == corrected and again.control is None
        assert again.info["resumed"] == 0 and "error" not in again.info


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/last/file", "align/run.json", "notes.txt"])
def test_a_failed_run_that_left_anything_makes_no_room(tmp_path: Path, name: str) -> None:
    Run.create(tmp_path / "a", RECIPE, kind="train").fail(ValueError("no"))
    write_atomic(tmp_path / "a" / name, "x")
    with pytest.raises(RunError, match=r"an unfinished run \(failed\); add --resume"):
        Run.create(tmp_path / "a", RECIPE.with_overrides("train.lr=0.5"), kind="train")


def test_resuming_with_another_recipe_names_what_differs(tmp_path: Path) -> None:
    make(tmp_path / "a", finish=False)
    with pytest.raises(
        RunError, match=r"another recipe: train.lr 0.001 -> 0.5, train.seed 0 -> 1; expected the recipe"
    ):
        Run.create(tmp_path / "a", RECIPE.with_overrides("train.lr=0.5", "train.seed=1"), kind="train", resume=True)
    Run.create(tmp_path / "a", RECIPE, kind="train", resume=True).close()


def test_resuming_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", finish=False)
    with pytest.raises(RunError, match="found a train run; expected a quickstart run"):
        Run.create(tmp_path / "a", RECIPE, kind="quickstart", resume=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "thesis.tex", "precious")
    with pytest.raises(
        RunError, match="a folder with 'thesis.tex' in it that is no run; expected a new or empty folder"
    ):
        Run.create(tmp_path, RECIPE, kind="train")
    with pytest.raises(RunError, match="found a file; expected a folder"):
        Run.create(tmp_path / "thesis.tex", RECIPE, kind="train")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_killed_before_run_json_the_folder_is_still_new_but_a_persons_recipe_is_not_ours(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "recipe.yaml", "half: a run")
    with pytest.raises(RunError, match="a folder with 'recipe.yaml' in it that is no run"):
        Run.create(tmp_path / "a", RECIPE, kind="train")
    write_atomic(tmp_path / "a" / ".lock", "")
    with Run.create(tmp_path / "a", RECIPE, kind="train") as run:
        assert run.recipe == RECIPE


def test_an_empty_folder_and_resume_without_a_run_start_one(tmp_path: Path) -> None:
    Run.create(tmp_path, RECIPE, kind="train", resume=True).finish()
    assert Run.open(tmp_path).status == "finished"


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "a", RECIPE, kind="train")
    for resume in (False, True):
        with pytest.raises(RunError, match=f"another writer .process {os.getpid()}"):
            Run.create(tmp_path / "a", RECIPE, kind="train", resume=resume)
    first.log({"step": 1})
    first.finish()
    assert [row["step"] for row in first.metrics()] == [1]


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_killed_run_is_stopped_and_can_be_resumed(tmp_path: Path) -> None:
    code = """
        import sys, time
        from workbench.recipe import Recipe
        from workbench.run import Run
        run = Run.create(sys.argv[1], Recipe.load("tiny-align", sys.argv[2:]), kind="train")
        time.sleep(0.6)
        run.log({"step": 1})
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a"), *OVERRIDES]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    run = Run.open(tmp_path / "a")
    assert run.status == "running"
    run.send("pause")
    assert run.status == "paused"
    run.send(None)
    writer.kill()
    writer.wait()
    assert run.status == "died" and [row["step"] for row in run.metrics()] == [1]
    worked = run.seconds
    assert 0.5 < worked < 60 and compare([run])[0]["seconds"] == worked, "as far as its last line of metrics"
    time.sleep(0.2)
    assert run.seconds == worked, "it does not go on counting"
    with pytest.raises(RunError, match=r"an unfinished run \(died\); add --resume"):
        Run.create(tmp_path / "a", RECIPE, kind="train")
    with Run.create(tmp_path / "a", RECIPE, kind="train", resume=True) as again:
        again.log({"step": 2})
    assert [row["step"] for row in run.metrics()] == [1, 2] and run.status == "finished"
    assert worked < run.seconds < worked + 30 and run.seconds == run.info["seconds"]


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found no run.json; expected a run folder"):
        Run.open(tmp_path)


def test_a_broken_run_json_is_named(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="run.json: found .*; expected a readable run.json"):
        _ = run.info


# --- several runs ---------------------------------------------------------------------------------------------


def test_list_finds_runs_inside_runs_in_order(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "group" / "b")
    make(tmp_path / "group" / "b" / "align")
    write_atomic(tmp_path / "not a run" / "file", "x")
    names = {str(run.path.relative_to(tmp_path)) for run in Run.list(tmp_path)}
    assert names == {"a", os.path.join("group", "b"), os.path.join("group", "b", "align")}
    assert [run.path for run in Run.list(tmp_path / "a")] == [tmp_path / "a"]
    assert Run.list(tmp_path / "nowhere") == []


def test_compare_shows_the_settings_that_differ_and_the_last_metrics(tmp_path: Path) -> None:
    made = [make(tmp_path / "a"), make(tmp_path / "b", "train.lr=0.5", finish=False)]
    first, second = compare(made)
    assert first["settings"] == {"train.lr": 0.001} and second["settings"] == {"train.lr": 0.5}
    assert (first["status"], second["status"]) == ("finished", "failed")
    assert first["metrics"] == {"step": 1, "loss": 2.0}
    json.dumps([first, second])
    assert compare([tmp_path / "a", str(tmp_path / "b")]) == [first, second], "folders are runs too"


def test_compare_tells_the_best_of_validation_and_a_run_that_was_let_go_is_stopped(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a", RECIPE, kind="train")
    for step, loss in ((2, 1.5), (4, 1.0), (6, 1.25)):
        run.log({"step": step, "loss": 0.5})
        run.log({"step": step, "val_loss": loss})
    (row,) = compare([run])
    assert row["best"] == {"val_loss": 1.0, "step": 4} and row["metrics"]["val_loss"] == 1.25
    run.close()
    assert run.status == "stopped" and run.info["seconds"] > 0


@pytest.mark.parametrize(
    ("file", "text", "status"),
    [("run.json", "{", "damaged"), ("run.json", "[]", "damaged"), ("recipe.yaml", "a: [", "finished")],
)
def test_a_damaged_run_is_a_row_with_its_error_among_the_others(
    tmp_path: Path, file: str, text: str, status: str
) -> None:
    """One of them once hid all the others from `workbench runs`."""
    for name in ("a", "b"):
        make(tmp_path / name)
    (make(tmp_path / "bad").path / file).write_text(text)
    rows = {Path(row["path"]).name: row for row in compare(Run.list(tmp_path))}
    assert set(rows) == {"a", "b", "bad"}
    assert file in rows["bad"]["error"] and rows["bad"]["status"] == status and rows["bad"]["settings"] == {}
    assert rows["a"]["error"] is None and rows["a"]["settings"] == {}, "a damaged recipe differs in no setting"
    assert runs.clean(tmp_path) == 0
    if status == "damaged":
        for resume in (False, True):
            with pytest.raises(RunError, match=r"run\.json: found .*expected a readable run\.json"):
                Run.create(tmp_path / "bad", RECIPE, kind="train", resume=resume)


def test_clean_keeps_the_best_checkpoint_and_unfinished_runs(tmp_path: Path) -> None:
    for path, finish in ((tmp_path / "a", True), (tmp_path / "b", False)):
        make(path, finish=finish)
        for name in ("best", "last", "step-5"):
            write_atomic(path / "checkpoints" / name / "file", b"x" * 100)
    assert runs.clean(tmp_path, dry_run=True) == 200
    assert runs.clean(tmp_path) == 200
    assert os.listdir(tmp_path / "a" / "checkpoints") == ["best"]
    assert len(os.listdir(tmp_path / "b" / "checkpoints")) == 3
    assert runs.clean(tmp_path) == 0
