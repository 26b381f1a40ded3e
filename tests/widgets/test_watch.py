"""What is seen of a run that goes on: curves that stay short, figures, answers, and a run that went back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from workbench.json_lines import JsonLines
from workbench.run import Run
from workbench.widgets.live import LiveView
from workbench.widgets.static import as_html
from workbench.widgets.watch import POINTS, Curve, Watch

RECIPE = {"name": "seen"}


def row(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": 0.1, "loss": loss, "lr": {"projector": 1e-3, "language lora": 2e-4}, "seconds": 0.5,
        "tokens_per_s": 12_345.0, "data_wait": 0.05, "flops_fraction": 0.42, "memory": 2_000_000_000,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run", RECIPE, kind="train")
    made.update(steps=100)
    return made


def figures(state: dict[str, Any]) -> dict[str, str]:
    return {figure["name"]: figure["value"] for figure in state["figures"]}


def test_figures_and_curves_follow_the_run(run: Run) -> None:
    watch = Watch(run)
    state, curves, answers = watch.look()
    assert (state["status"], state["step"], state["steps"], state["left"]) == ("running", 0, 100, None)
    assert set(figures(state).values()) == {"–"} and curves == {} and answers["cards"] == []
    run.log(row(1, 3.0))
    run.log({"step": 1, "val_loss": 2.5})
    run.log(row(2, 2.0))
    run.log({"step": 2, "val_loss": 2.75})
    run.send("save")
    state, curves, _ = watch.look()
    assert figures(state) == {
        "loss": "2.000", "validation": "2.750", "tokens/s": "12.3k", "of peak": "42%", "data wait": "10%",
        "memory": "2.00 GB",
    }  # fmt: skip
    assert state["figures"][1]["note"] == "best 2.500 at step 1"
    assert (state["step"], state["left"], state["asked"]) == (2, 49, "save")
    assert curves["loss"] == {"training": [[1, 3.0], [2, 2.0]], "validation": [[1, 2.5], [2, 2.75]]}
    assert set(curves["learning rate"]) == {"projector", "language lora"}
    assert curves["waiting for data, %"]["waiting"][-1] == [2, 10.0]


def test_a_resumed_run_shows_the_steps_it_repeats_once(run: Run) -> None:
    watch = Watch(run)
    for step in range(1, 6):
        run.log(row(step, step))
    watch.look()
    run.rewind(2)
    run.log(row(3, 30.0))
    assert watch.look()[1]["loss"]["training"] == [[1, 1.0], [2, 2.0], [3, 30.0]]


def test_a_long_curve_keeps_its_mean_and_its_ends() -> None:
    curve = Curve()
    for step in range(10_001):
        curve.add(step, step * 2.0)
    points = curve.points()
    assert POINTS / 2 - 1 <= len(points) <= POINTS
    assert points[0][0] < 40 and points[-1][0] > 9_900
    for x, y in points:
        assert y == pytest.approx(2 * x, rel=1e-3)


def test_answers_are_cards_with_their_pictures_and_every_step(run: Run) -> None:
    (run.path / "answers").mkdir()
    PIL.Image.new("RGB", (8, 8), "red").save(run.path / "answers" / "0.jpg")
    lines = JsonLines(run.path / "answers.jsonl")
    for step, said in ((0, "a <b>dog</b>"), (50, "red")):
        one = {"id": "q", "task": "caption", "picture": "answers/0.jpg", "question": "Colour?", "reference": "red"}
        lines.append({"step": step, "answers": [{**one, "answer": said}]})
    answers = Watch(run).look()[2]
    assert answers["steps"] == [0, 50]
    (card,) = answers["cards"]
    assert card["answers"] == ["a <b>dog</b>", "red"]
    assert card["picture"].startswith("data:image/jpeg;base64,")


def test_without_a_kernel_it_is_html_with_every_text_escaped(run: Run) -> None:
    run.log(row(1, 3.0))
    lines = JsonLines(run.path / "answers.jsonl")
    one = {"id": "q", "question": "<script>alert(1)</script>", "reference": "&", "answer": "<i>", "picture": None}
    lines.append({"step": 1, "answers": [one]})
    page = as_html(*Watch(run).look())
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;i&gt;" in page
    assert "step 1 of 100" in page and "<svg" in page and "<circle" in page


class Asked(Run):
    """Says what its buttons were."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in ("stop", "pause", "resume", "save"):
            raise AttributeError(name)
        return lambda: self.asked.append(name)


def test_buttons_reach_the_run_and_the_bundle_works_without_a_kernel(run: Run) -> None:
    steered = Asked(run.path)
    view = LiveView(steered)
    try:
        for action in ("pause", "resume", "save", "stop", "rm -rf", "close"):
            view._asked(view, {"do": action}, [])
        view._asked(view, "nonsense", [])
        assert steered.asked == ["pause", "resume", "save", "stop"]
        run.log(row(1, 3.0))
        view.update()
        data, _ = view._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in data
        assert "3.000" in data["text/html"] and "Asked(" in data["text/plain"]
    finally:
        view.close()


def test_the_thread_keeps_looking_and_ends_with_the_run(run: Run) -> None:
    view = LiveView(Asked(run.path))
    run.log(row(1, 3.0))
    run.finish()
    view._thread.join(20)
    assert not view._thread.is_alive()
    assert view.state["status"] == "finished" and view.curves["loss"]["training"] == [[1, 3.0]]
