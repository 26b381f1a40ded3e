"""What a person sees of a long step, in a terminal, a log file, and nowhere."""

from __future__ import annotations

import os
import re
import sys

import pytest

from workbench import progress as bars
from workbench.progress import clock, progress, track


def test_silent_when_switched_off(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("align", total=2, unit="step") as bar:
        bar.advance(note="loss 1")
        bar.advance()
    assert capfd.readouterr() == ("", "")
    assert bar.done == 2 and bar.note == "loss 1"


def test_plain_lines_without_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "auto")
    monkeypatch.setattr(bars, "PLAIN_SECONDS", 0.0)
    with progress("align", total=4, unit="step") as bar:
        bar.advance(1, note="loss 0.31")
    out, err = capfd.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert re.fullmatch(r"align: 1/4 step \(25%\), \S+ step/s, \d+:\d\d left, loss 0.31", first)
    assert re.fullmatch(r"align: 1/4 step \(25%\), \S+ step/s, took 0:00, loss 0.31", last)


def test_nothing_to_do_is_nothing_to_tell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "plain")
    assert list(track([], "looking")) == []
    assert capfd.readouterr() == ("", "")


def test_plain_lines_are_seconds_apart(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "plain")
    assert list(track(range(1000), "looking", unit="image")) == list(range(1000))
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_rich_bars_nest_and_show_rate_and_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "rich")
    with progress("outer", total=1) as outer:
        for _ in track(3, "inner", unit="image"):
            pass
        outer.advance()
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"outer .*1/1 it", err) and re.search(r"inner .*3/3 image .*image/s", err)
    assert bars.RichProgress._display is None


def test_an_error_inside_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_PROGRESS", "rich")
    with pytest.raises(ValueError, match="no"), progress("outer", total=1):
        raise ValueError("no")
    assert bars.RichProgress._display is None


def test_track_takes_a_number_a_list_or_an_unknown_length() -> None:
    assert list(track(3, "counting")) == [0, 1, 2]
    assert list(track(["a", "b"], "reading")) == ["a", "b"]
    assert list(track(iter("xy"), "streaming")) == ["x", "y"]


def test_nothing_of_rich_is_loaded_for_a_silent_bar() -> None:
    code = "import sys, workbench.progress as p; list(p.track(3, 'x')); sys.exit('rich' in sys.modules)"
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], dict(os.environ)) == 0


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0, "0:00"), (61.4, "1:01"), (3725, "1:02:05")])
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_remaining_time_follows_the_rate() -> None:
    bar = progress("align", total=100)
    assert bar.remaining is None
    bar.advance(25)
    assert bar.remaining == pytest.approx(3 * bar.seconds, rel=0.5)
