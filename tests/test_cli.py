"""The command: every verb has help with an example, a person's error is one line, JSON stands alone on stdout."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image as PILImage

import workbench
from workbench import cli, resources
from workbench.commands import house
from workbench.commands.common import dataset_of
from workbench.errors import WorkbenchError
from workbench.model.render_file import render_file
from workbench.recipe import Recipe
from workbench.resources import write_atomic
from workbench.run import Run, clean

VERBS = (
    "quickstart", "import", "generate", "render", "train", "evaluate", "score", "benchmarks", "chat", "export", "runs",
    "clean", "doctor", "demo", "conformance", "split",
)  # fmt: skip


def paint_folders(folder: Path, count: int) -> None:
    """`count` noisy pictures with a square in each of the class folders `red` and `blue`."""
    for label, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            picture = PILImage.effect_noise((32, 32), 40 + number).convert("RGB")
            picture.paste(colour, (number, number, 24, 24))
            picture.save(folder / label / f"{number}.png")


# --- help and usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out and f"  workbench {verb}" in out


def test_every_verb_is_a_python_call_of_the_same_name() -> None:
    other = {"import": "import_folder", "runs": "compare"}  # `import` is a word of Python's own
    assert all(callable(getattr(workbench, other.get(verb, verb))) for verb in VERBS)
    assert workbench.clean is clean and workbench.render is render_file


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_can_be_parsed(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    examples = [
        line.split("<")[0].split() for line in capsys.readouterr().out.split("examples:")[1].splitlines() if line
    ]
    assert examples
    for words in examples:
        assert callable(cli._parser().parse_args(words[1:]).verb)


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"    {verb}" in out for verb in VERBS)


@pytest.mark.parametrize(
    "words", [[], ["trian"], ["train", "tiny-align"], ["runs", "--bad"], ["chat", "m", "--max-tokens", "0"]]
)
def test_a_command_that_cannot_be_understood_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: workbench" in capsys.readouterr().err


# --- errors are one line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tiny-aling", "--out", "x"], "error: tiny-aling: found no such file or recipe"),
        (["train", "tiny-align", "--set", "train.lrr=1", "--out", "x"], "found an unknown key; did you mean train.lr?"),
        (["train", "tiny-align", "--set", "train.lr", "--out", "x"], "expected for example train.lr=2e-4"),
        (["generate", "nowhere"], "error: nowhere"),
        (["import", "nowhere", "--out", "x"], "error: nowhere"),
        (["import", "nowhere.json", "--out", "x"], "error: nowhere.json"),
        (["evaluate", "nowhere", "nowhere"], "error: nowhere"),
        (["chat", "nowhere"], "error: nowhere"),
        (["export", "nowhere", "x"], "error: nowhere"),
        (["render", "nowhere.json", "--template", "v1", "--tokenizer", "nowhere"], "error: nowhere"),
        (["clean", "nothing"], "error: nothing: found no such entry in"),
    ],
)
def test_a_persons_error_is_one_line_and_status_1(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "pictures", "--out", "file"], "error: file: found something of that name; expected a new or empty"),
        (["import", "pictures", "--out", "file/x"], "error: file/x: found a file where a folder has to be"),
        (["train", "tiny-align", "--out", "file"], "error: file: found a file; expected a folder"),
        (["train", "tiny-align", "--out", "file/x"], "error: file/x: found a file where a folder has to be"),
        (["evaluate", "nowhere", "nowhere", "--out", "pictures"], "error: pictures: found a folder with other things"),
        (["evaluate", "nowhere", "nowhere", "--out", "file"], "error: file: found a file; expected a new folder"),
        (["evaluate", "x", "x", "--out", "rows.jsonl"], "error: rows.jsonl: found a folder; expected a file to write"),
    ],
)
def test_an_out_that_cannot_be_written_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint_folders(tmp_path / "pictures", 1)
    Path("file").write_text("x")
    Path("rows.jsonl").mkdir()
    assert cli.main(words) == 1
    err = capsys.readouterr().err.splitlines()
    assert message.replace("/", os.sep) in err[-1] and not any("Traceback" in line for line in err)
    assert sorted(os.listdir(tmp_path)) == ["file", "pictures", "rows.jsonl"]


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (WorkbenchError("a", found="two\nlines"), 1, "error: a: found two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: the disk: found a full disk; expected free space",
        ),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_what_goes_wrong_inside_a_verb_is_one_line(
    raised: BaseException,
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(given: argparse.Namespace) -> None:
        raise raised

    monkeypatch.setattr(house, "_runs", fail)
    assert cli.main(["runs"]) == status
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "_runs", lambda given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["runs"])


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of Unix")
def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from workbench.cli import main; sys.exit(main(['runs', '--help']))"
    shell = f'"{sys.executable}" -c "{code}" | true'
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


# --- runs and clean -------------------------------------------------------------------------------------------


def test_runs_lists_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("a", 1e-3), ("b", 0.5)):
        with Run.create(tmp_path / name, Recipe.load("tiny-align", [f"train.lr={rate}"]), kind="train") as run:
            run.log({"step": 1, "loss": rate})
            if name == "a":
                run.log({"step": 1, "val_loss": 0.25})
                run.log({"step": 2, "loss": rate, "val_loss": 0.75})
    assert cli.main(["runs", str(tmp_path), "--settings"]) == 0
    out = capsys.readouterr().out
    assert "finished" in out and "loss 0.5000 (training)" in out and "train.lr: 0.001" in out
    assert "loss 0.2500 (validation, best at step 1)" in out, "a training loss is another"
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["settings"] for row in rows] == [{"train.lr": 0.001}, {"train.lr": 0.5}]
    write_atomic(tmp_path / "a" / "run.json", "{")
    assert cli.main(["runs", str(tmp_path)]) == 0
    first, error, second = capsys.readouterr().out.splitlines()
    assert "damaged" in first and "expected a readable run.json" in error and "finished" in second


def test_runs_of_a_folder_that_is_not_there_are_asked_for_in_vain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "nope"]) == 1
    assert "nope: found no such folder" in capsys.readouterr().err


def test_clean_shows_sizes_and_removes_only_when_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_atomic(home / "datasets" / "file", b"x" * 2_000_000)
    write_atomic(home / "cache" / "file", b"x")
    assert cli.main(["clean", "datasets"]) == 0
    out = capsys.readouterr().out
    assert "datasets" in out and "2.0 MB" in out and "--yes" in out and (home / "datasets").exists()
    assert cli.main(["clean", "datasets", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == {"datasets": 2_000_000}
    assert os.listdir(home) == ["cache"]
    assert cli.main(["clean", "--yes"]) == 0
    assert os.listdir(home) == []


def test_clean_trims_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.create(tmp_path / "a", {"x": 1}, kind="train") as run:
        for name in ("best", "last"):
            write_atomic(run.path / "checkpoints" / name / "file", b"x" * 1_000_000)
    assert cli.main(["clean", "--runs", str(tmp_path)]) == 0
    assert "1.0 MB" in capsys.readouterr().out and (run.path / "checkpoints" / "last").exists()
    assert cli.main(["clean", "--runs", str(tmp_path), "--yes"]) == 0
    assert os.listdir(run.path / "checkpoints") == ["best"]


# --- the rooms behind the verbs -------------------------------------------------------------------------------


def test_import_and_generate_make_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint_folders(tmp_path / "pictures", 3)
    out = str(tmp_path / "data")
    assert cli.main(["import", str(tmp_path / "pictures"), "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dataset"] == out and told["counts"]["images"] == 6
    assert cli.main(["generate", out, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts and all(count > 0 for count in counts.values())
    assert cli.main(["evaluate", "nowhere", out]) == 1
    assert "found no question in split test" in capsys.readouterr().err
    assert cli.main(["evaluate", "nowhere", out, "--split", "train", "--tasks", "nope"]) == 1
    told = capsys.readouterr().err
    assert "found no nope in split train; expected tasks of that split: caption, conversation" in told
    (tmp_path / "file").touch()
    page = str(tmp_path / "file" / "far" / "page.html")
    assert cli.main(["evaluate", "nowhere", out, "--report", page]) == 1
    assert "file/far: found a file where a folder has to be" in capsys.readouterr().err


def test_split_keeps_pictures_apart_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint_folders(tmp_path / "pictures", 10)
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    for out in (one, other):
        assert cli.main(["import", str(tmp_path / "pictures"), "--out", out]) == 0
    capsys.readouterr()
    words = ["--val", "0.2", "--test", "0.3", "--seed", "5", "--stratify", "label"]
    assert cli.main(["split", one, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"train": 10, "val": 4, "test": 6}
    workbench.split(other, {"train": 0.5, "val": 0.2, "test": 0.3}, seed=5, stratify="label")
    assert workbench.Dataset.open(one).images["split"].equals(workbench.Dataset.open(other).images["split"])
    assert cli.main(["split", one]) == 0
    assert "train 16, val 2, test 2 (images and videos)" in capsys.readouterr().out
    assert cli.main(["split", one, "--val", "0.7", "--test", "0.3"]) == 0
    assert "train 0, val 14, test 6" in capsys.readouterr().out
    assert cli.main(["split", one, "--val", "0.7", "--test", "0.4"]) == 1
    assert "expected 0 or more each, 1 together" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes of Unix")
def test_ctrl_c_in_a_real_process_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys, workbench.cli, workbench.run; print('up', flush=True); sys.exit(workbench.cli.main(sys.argv[1:]))"
    )
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "run.json")  # reading it waits for ever
    process = subprocess.Popen([sys.executable, "-c", code, "runs", str(tmp_path)], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines() == ["stopped by Ctrl-C; what was finished before is kept"]


def test_a_shipped_recipe_s_own_dataset_is_told_before_it_is_trained_on(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "tiny-align", "--out", "run"]) == 1
    told = "trains on 'scenes', the dataset that the recipe tiny-align names; --set data.dataset=DATASET names yours"
    assert told in capsys.readouterr().err
    Path("own.yaml").write_text((resources.recipes_folder() / "tiny-align.yaml").read_text())
    assert cli.main(["train", "own.yaml", "--out", "run"]) == 1
    assert "names yours" not in capsys.readouterr().err


def test_the_whole_way_by_verbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import, generate, two stages, evaluate, chat, export: each verb works on what the one before wrote."""
    monkeypatch.chdir(tmp_path)
    paint_folders(tmp_path / "pictures" / "train", 3)
    paint_folders(tmp_path / "pictures" / "test", 1)
    assert cli.main(["import", "pictures", "--out", "data"]) == 0
    assert cli.main(["generate", "data"]) == 0
    quick = ["--set", "data.dataset=data", "--set", "data.tasks=null", "--set", "train.max_steps=2"]
    quick += ["--set", "train.batch_size=4", "--set", "train.threads=1"]
    assert cli.main(["train", "tiny-align", *quick, "--out", "runs/align", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trained | {"val_loss": 0} == {"run": "runs/align", "status": "finished", "step": 2, "val_loss": 0}
    assert cli.main(["train", "tiny-finetune-qlora", *quick, "--out", "runs/finetune", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "next: workbench chat runs/finetune" in out
    assert "no run in runs/finetune to resume: a new one starts" in err and "names yours" not in err
    assert cli.main(["train", "tiny-finetune-qlora", *quick, "--out", "runs/finetune"]) == 1
    assert "found a finished run" in capsys.readouterr().err

    assert cli.main(["evaluate", "runs/finetune", "data", "--json", "--out", "answers.jsonl"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["questions"] == 2 and 0 <= scores["accuracy"] <= 1
    assert len(Path("answers.jsonl").read_text().splitlines()) == 2

    monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n"))
    asked = ["chat", "runs/finetune", "--image", "pictures/test/red/0.png", "--max-tokens", "3"]
    assert cli.main([*asked, "--load", "fp32", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main([*asked, "--device", "gpu"]) == 1
    assert "error: device: found 'gpu'" in capsys.readouterr().err

    assert cli.main(["export", "runs/finetune", "out", "--as", "hf", "--base", "original", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"written": "out"} and "2 questions" in err
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= set(os.listdir("out"))
    assert cli.main(["export", "runs/finetune", "out"]) == 1
    assert "expected a new or empty folder" in capsys.readouterr().err


def test_a_quickstarts_report_names_the_dataset_that_export_compares_on(tmp_path: Path) -> None:
    """A quickstart has no training recipe: `export --base original` said `accuracy not compared`."""
    with Run.create(tmp_path / "quick", {"images": None, "count": 3}, kind="quickstart"):
        pass
    with pytest.raises(WorkbenchError, match="no training recipe"):
        dataset_of(str(tmp_path / "quick"))
    write_atomic(tmp_path / "quick" / "report.json", json.dumps({"dataset": "data/scenes"}))
    assert dataset_of(str(tmp_path / "quick")) == "data/scenes"


def test_train_says_by_its_status_that_a_run_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that goes on after status 0 once went on with half a model."""
    monkeypatch.chdir(tmp_path)
    paint_folders(tmp_path / "pictures", 3)
    assert cli.main(["import", "pictures", "--out", "data"]) == 0 and cli.main(["generate", "data"]) == 0
    words = ["train", "tiny-align", "--set", "data.dataset=data", "--set", "data.tasks=null", "--out", "run"]
    words += ["--set", "train.threads=1", "--set", "train.batch_size=2", "--set", "train.max_steps=500"]

    def stop() -> None:
        while not Path("run", "metrics.jsonl").is_file():
            time.sleep(0.01)
        Run("run").send("stop")

    asker = threading.Thread(target=stop, daemon=True)
    asker.start()
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == 130
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "stopped" and 1 <= told["step"] < 500


def test_a_dataset_that_is_not_there_is_told_before_there_is_a_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny recipes' own is made by the quickstart, which nothing said; a failed run was left behind."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "tiny-align", "--out", "runs/x"]) == 1
    assert (
        "error: scenes: found no such folder" in (told := capsys.readouterr().err) and "`workbench quickstart`" in told
    )
    assert cli.main(["train", "tiny-align", "--set", "data.dataset=data/mine", "--out", "runs/x"]) == 1
    assert "error: data/mine: found no such folder" in (told := capsys.readouterr().err) and "quickstart" not in told
    Path("mine.yaml").write_text(
        Path(resources.recipes_folder(), "tiny-align.yaml").read_text().replace("scenes", "mine.json\n  images: photos")
    )
    for command in (["plan", "mine.yaml", "data/mine"], ["plan", "mine.yaml", "--set", "data.dataset=data/mine"]):
        assert cli.main(command) == 1
        assert "error: data/mine: found no such folder" in capsys.readouterr().err
    assert cli.main(["train", "mine.yaml", "--out", "runs/x"]) == 1
    assert "error: mine.json: found no such file or folder; expected a dataset folder, or" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_render_prints_an_object_per_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    good = {"id": "good", "image": "a.png", "conversations": turns}
    bad = {"id": "bad", "image": "a.png", "conversations": turns[:1]}
    tokenizer = str(resources.tiny_folder() / "language")
    write_atomic(tmp_path / "both.json", json.dumps([bad, good]))
    assert cli.main(["render", str(tmp_path / "both.json"), "--template", "v1", "--tokenizer", tokenizer]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"id", "error"} and first["id"] == "bad"
    assert second["id"] == "good" and second["ids"].count(-200) == 1 and len(second["ids"]) == len(second["labels"])
    write_atomic(tmp_path / "good.jsonl", json.dumps(good) + "\n")
    words = ["render", str(tmp_path / "good.jsonl"), "--template", "v1", "--tokenizer", tokenizer, "--show"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == second and "A cat." in err
