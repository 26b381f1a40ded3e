"""The commands from a score to the picture, as a person runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from teacher_server import serving  # noqa: E402

from workbench.cli import main  # noqa: E402


def results(folder: Path, right: int) -> str:
    folder.mkdir(parents=True)
    rows = [
        {
            "id": f"q{n}",
            "type": "color",
            "question": "Which?",
            "reference": "red",
            "image": f"{n}.png",
            "root": "images",
        }
        | {"answer": "red" if n < right else "blue", "earned": float(n < right)}
        for n in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluation.json").write_text(json.dumps({"name": "mine", "scorer": "exact"}))
    return str(folder)


def test_a_page_is_written_beside_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results(tmp_path / "tuned", 15)
    assert main(["report", folder]) == 0
    said = capsys.readouterr().out
    assert "tuned: 50.0 [" in said and "type color" in said and f"written: {folder}/report.html" in said
    assert main(["report", folder, "--json", "--out", str(tmp_path / "p.html")]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 0.5 and (tmp_path / "p.html").is_file()


def test_before_and_after_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = results(tmp_path / "base", 25), results(tmp_path / "tuned", 5)
    page = tmp_path / "change.html"
    assert main(["report", "--before", before, "--after", after, "--out", str(page)]) == 0
    assert "mine: 83.3" in (said := capsys.readouterr().out) and "forgotten" in said and page.is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report"], "found no results"),
        (["report", "nowhere"], "no such folder"),
        (["report", "tuned", "--slices", "colour"], "found kind 'colour'"),
        (["report", "tuned", "--slices", "tag:night"], "found no dataset"),
        (["report", "tuned", "--before", "tuned"], "either results, or --before and --after"),
        (["report", "--before", "tuned"], "1 results before and 0 after"),
        (["report", "tuned", "--coverage"], "found no dataset"),
        (["open", "nowhere", "--results", "tuned"], "nowhere"),
        (["score", "mmvet", "tuned"], "found no judge"),
        (["evaluate", "nowhere", "tuned", "--scorer", "judge"], "found no judge"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    results(tmp_path / "tuned", 15)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error and error.count("\n") == 1


def test_answers_are_judged_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"imagename": "v1_0.png", "question": "What?", "answer": "a cat", "capability": ["rec"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": asked}))
    (tmp_path / "mm-vet_evaluator.py").write_text('prompt = """Judge."""\n')
    (tmp_path / "mine.json").write_text(json.dumps({"v1_0": "a dog"}))
    with serving(faults=()) as (server, url):
        server.reply = lambda prompt: "0.3"
        command = ["score", "mmvet", str(tmp_path / "mine.json"), "--references", str(tmp_path), "--judge", f"m@{url}"]
        assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 30.0 and (tmp_path / "judged.sqlite").is_file()


def test_the_judged_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmarks"]) == 0
    said = capsys.readouterr().out
    assert "LLaVA-Bench-in-the-wild" in said and "mm-vet_evaluator.py" in said and "rule.json" in said
