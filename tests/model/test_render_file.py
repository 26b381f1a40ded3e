"""`workbench render`: one line of JSON per conversation, whatever is wrong with one of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workbench.cli import main
from workbench.conversation import Conversation, Image, Message
from workbench.errors import DataError
from workbench.model.render_file import coloured, render_file
from workbench.model.renderer import Renderer
from workbench.model.tokenizers import load_tokenizer

LLAVA = Path(__file__).parent / "llava"
EXPECTED = json.loads((LLAVA / "expected.json").read_text(encoding="utf-8"))


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_every_conversation_is_printed_and_a_bad_one_with_its_reason(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = EXPECTED["conversations"]
    file = tmp_path / f"talks.{kind}"
    file.write_text(json.dumps(records) if kind == "json" else "\n".join(map(json.dumps, records)), encoding="utf-8")
    status = main(["render", str(file), "--template", "v1", "--tokenizer", str(LLAVA / "tokenizer.model")])
    printed = lines_of(capsys.readouterr().out)
    assert status == 1
    assert [line["id"] for line in printed] == [record["id"] for record in records]
    expected = next(case for case in EXPECTED["renderings"] if case["template"] == "v1" and case["legacy"])["expected"]
    for line in printed:
        if expected[line["id"]] is None:
            assert line.keys() == {"id", "error"} and re.search(r"(^|, )message \d+: found ", line["error"])
        else:
            assert line.keys() == {"id", "ids", "labels"} and line["ids"] == expected[line["id"]]["ids"]
            assert len(line["labels"]) == len(line["ids"])


def test_an_id_keeps_its_type_and_a_broken_record_does_not_stop_the_others(tmp_path: Path) -> None:
    good = {"id": 7, "image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, turn("gpt", "A cat.")]}
    lost = {"id": "lost", "conversations": [turn("human", "<image>\nx"), turn("gpt", "y")]}
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join([json.dumps(lost), "{cut off", json.dumps(good)]))
    out = io.StringIO()
    assert render_file(file, "plain", LLAVA / "tokenizer.model", out=out) == 1
    first, second, third = lines_of(out.getvalue())
    assert first["id"] == "lost" and "1 <image> marks and 0 images" in first["error"]
    assert second["id"] == "line 2" and "broken JSON" in second["error"]
    assert third["id"] == 7 and third["ids"][:2] == [1, -200]


def test_when_all_can_be_trained_on_the_status_is_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([{"id": "a", "conversations": [turn("human", "x"), turn("gpt", "y")]}]))
    assert main(["render", str(file), "--template", "v1", "--tokenizer", str(LLAVA)]) == 0
    assert lines_of(capsys.readouterr().out)[0]["id"] == "a"


def test_shown_text_marks_what_is_trained_on_and_leaves_the_json_alone(tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    talk = [turn("human", "<image>\nWhat?"), turn("gpt", "Ä 🙂 cat."), turn("human", "Sure?"), turn("gpt", "Yes.")]
    bad = {"id": "b", "conversations": [turn("human", "x"), turn("gpt", "</s>")]}
    file.write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": talk}, bad]))
    out, shown = io.StringIO(), io.StringIO()
    assert render_file(file, "tiny", LLAVA / "tokenizer.model", show=True, out=out, shown=shown) == 1
    assert [line["id"] for line in lines_of(out.getvalue())] == ["a", "b"]
    assert "USER: <image>\nWhat? ASSISTANT:⟦ Ä 🙂 cat.</s>⟧ USER: Sure? ASSISTANT:⟦ Yes.</s>⟧" in shown.getvalue()
    assert "— b\nb, message 1: found '</s>' in the text" in shown.getvalue()


def test_in_a_terminal_the_trained_tokens_are_coloured() -> None:
    renderer = Renderer(load_tokenizer(LLAVA), "tiny")
    talk = Conversation("a", (Message("user", (Image("a.png"), "What?")), Message("assistant", "A cat.")))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False)
    text = coloured(renderer, renderer.render(talk), console)
    styled = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styled == {"<image>": "cyan", " A cat.</s>": "bold black on green"}


def test_a_file_that_is_missing_or_no_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.json: found No such file"):
        render_file(tmp_path / "nowhere.json", "v1", LLAVA)
    file = tmp_path / "text.json"
    file.write_text("hello")
    with pytest.raises(DataError, match="text.json: found a file that begins with 'h'"):
        render_file(file, "v1", LLAVA)


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}
