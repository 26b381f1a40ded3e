"""The whole way, small: the real command with the real parts, and the files a person then has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.data.dataset import Dataset
from workbench.errors import RecipeError
from workbench.quickstart import quickstart
from workbench.run import Run

FEW = ["--set", "train.max_steps=3", "--set-align", "train.max_steps=3"]


def run_command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    environment = {**os.environ, "WORKBENCH_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=560, check=False)


def test_the_quickstart_leaves_a_report_and_a_model_that_answers(tmp_path: Path, home: Path) -> None:
    out = tmp_path / "quick"
    done = run_command("quickstart", "--count", "80", "--out", str(out), *FEW, home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    for key in ("accuracy_before", "accuracy_after", "accuracy_blind", "accuracy_grey", "seconds", "by_type"):
        assert key in report
    assert report["by_type"]["after"].keys() == report["by_type"]["blind"].keys()
    assert [row["removed"] for row in report["funnel"]] == [12, 40, 40]  # every planted fault, and nothing else
    assert sum(report["splits"].values()) == 80
    page = (out / "report.html").read_text()
    assert page.count('<div class="example">') == 10 and page.count("<polyline") == 4 and "{{" not in page
    for name in ("before", "after", "blind", "grey"):
        assert len((out / f"answers-{name}.jsonl").read_text().splitlines()) == report["questions"]
    assert Run.open(out).status == "finished" and Run.open(out).checkpoint is not None
    assert len(Dataset.open(report["dataset"]).conversations("test", tasks=["question"])) >= report["questions"]
    refused = run_command("quickstart", "--count", "80", "--out", str(out), *FEW, home=home)
    assert refused.returncode == 1 and "finished run" in refused.stderr and "Traceback" not in refused.stderr


def test_pictures_in_class_folders_do(tmp_path: Path, home: Path) -> None:
    rng = np.random.default_rng(0)
    for label, level in (("dark", 40), ("bright", 210)):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(level + rng.normal(0, 30, (20 + number, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / label / f"{number}.png")
    out = tmp_path / "quick"
    done = run_command("quickstart", "--images", str(tmp_path / "mine"), "--out", str(out), *FEW, home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert list(report["by_type"]["after"]) == ["class"]


def test_pictures_with_captions_do(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,caption"]
    for number in range(60):
        coarse = np.clip((40, 130, 220)[number % 3] + rng.normal(0, 30, (6, 6, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((60, 60)).save(tmp_path / "mine" / f"{number}.png")
        lines.append(f"{number}.png,a {('dark', 'grey', 'bright')[number % 3]} picture")
    (tmp_path / "mine" / "captions.csv").write_text("\n".join(lines))
    out = tmp_path / "quick"
    done = run_command("quickstart", "--images", str(tmp_path / "mine"), "--out", str(out), *FEW, home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(json.loads((out / "report.json").read_text())["by_type"]["after"]) == ["caption"]


@pytest.mark.parametrize("which", ["overrides", "align_overrides"])
def test_a_mistyped_override_is_told_before_anything_is_done(which: str, tmp_path: Path, home: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean train.max_steps"):
        quickstart(tmp_path / "run", count=30, **{which: ["train.maxsteps=2"]})
    assert not (tmp_path / "run").exists() and not (home / "datasets").exists()


@pytest.mark.timeout(900)  # twice a quickstart, on a machine without a fast way to multiply by four bits
def test_ctrl_c_in_a_stage_ends_the_quickstart_and_resume_goes_on(tmp_path: Path, home: Path) -> None:
    out = tmp_path / "quick"
    command = [sys.executable, "-m", "workbench.cli", "quickstart", "--count", "80", "--out", str(out)]
    command += ["--set", "train.max_steps=3", "--set-align", "train.max_steps=120"]
    environment = {**os.environ, "WORKBENCH_HOME": str(home)}
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    metrics, waited = out / "align" / "metrics.jsonl", time.monotonic()
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() - waited < 200:
        time.sleep(0.2)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=100)
    assert started.returncode == 130 and "stopped by Ctrl-C" in errors and "Traceback" not in errors
    assert not (out / "finetune").exists() and Run.open(out).status == "failed"
    made = len(metrics.read_text().splitlines())
    settings = ["--set", "train.max_steps=3", "--set-align", "train.max_steps=120"]
    Run.open(out / "align").send(None)
    again = run_command("quickstart", "--count", "80", "--out", str(out), *settings, "--resume", home=home)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "goes on after step" in again.stderr and Run.open(out).status == "finished"
    steps = [row["step"] for row in Run.open(out / "align").metrics() if "loss" in row]
    assert steps == list(range(1, 121)) and made < 120


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_pictures_are_one_clear_line(count: int, tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine" / "a").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (30 + number, 30), (number * 40, 9, 9)).save(tmp_path / "mine" / "a" / f"{number}.png")
    done = run_command("quickstart", "--images", str(tmp_path / "mine"), "--out", str(tmp_path / "o"), home=home)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
