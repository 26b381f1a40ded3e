"""LLaVA's files: read record by record, written back equal, and every broken record named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from tests.videos import moving
from workbench.conversation import Conversation, Image, Message, new_id
from workbench.data import json_records
from workbench.data.dataset import Dataset
from workbench.data.formats import BadRecord, export_llava, import_llava, read_conversations
from workbench.data.recognise import recognise
from workbench.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1]))
from killing import COUNTED  # noqa: E402


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


PRETRAIN = [  # the shape of LLaVA-Pretrain (558K): the mark before or behind the text
    {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": [turn("human", "Describe.\n<image>"), turn("gpt", "a cat")],
    },
    {
        "id": "002239345",
        "image": "00223/002239345.jpg",
        "conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "a dog")],
    },
    {
        "id": "002239346",
        "image": "00223/002239345.jpg",
        "conversations": [turn("human", "<image>"), turn("gpt", "a dog")],
    },
]
MIX = [  # the shape of the 665K mix: several turns, text only, further keys, numbers as ids, the same id twice
    {"id": "000000033471", "image": "coco/33471.jpg", "conversations": [
        turn("human", "<image>\nWhat colour?"), turn("gpt", "Red."), turn("human", "Sure?"), turn("gpt", "Yes.\n")]},
    {"id": "wgByO4Y_0", "model": "gpt-4", "conversations": [turn("human", "Hello"), turn("gpt", "Hi, ä 漢字")]},
    {"id": 7, "conversations": [turn("system", "Be brief."), turn("human", "Hello"), turn("gpt", "Hi")]},
    {"id": 7, "conversations": [turn("system", "Be brief."), turn("human", "Hello"), turn("gpt", "Hi")]},
    {"id": "two", "image": ["a.jpg", "b.jpg"], "conversations": [
        turn("human", "<image>\n<image>\nSame?"), turn("gpt", "No")]},
]  # fmt: skip


def write(path: Path, records: list[Any]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records) if lines else json.dumps(records, indent=2))
    return path


def read(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for record in PRETRAIN + MIX:
        listed = record.get("image", [])
        for path in [listed] if isinstance(listed, str) else listed:
            file = tmp_path / "pictures" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            PILImage.new("RGB", (8, 8), "red").save(file)
    return tmp_path / "pictures"


@pytest.mark.parametrize("records", [PRETRAIN, MIX], ids=["558K", "665K"])
@pytest.mark.parametrize(("came", "goes"), [(".json", ".jsonl"), (".jsonl", ".json")])
def test_what_came_in_goes_out_equal(tmp_path: Path, pictures: Path, records: list[Any], came: str, goes: str) -> None:
    dataset = import_llava(write(tmp_path / f"in{came}", records), pictures, tmp_path / "ds")
    assert export_llava(dataset, tmp_path / f"out{goes}") == len(records)
    assert read(tmp_path / f"out{goes}") == records
    again = import_llava(tmp_path / f"out{goes}", pictures, tmp_path / "again")
    assert again.conversations() == dataset.conversations()
    assert [one.source["foreign_id"] for one in dataset.conversations()] == [record["id"] for record in records]


def test_a_mark_stands_before_the_text_of_its_message_as_in_llava(tmp_path: Path) -> None:
    first, second, third = read_conversations(write(tmp_path / "a.json", PRETRAIN))
    image = Image("00453/004539375.jpg")
    assert isinstance(first, Conversation) and isinstance(second, Conversation) and isinstance(third, Conversation)
    assert first.messages[0] == Message("user", (image, "Describe."))
    assert second.messages[0].text == "What?" and third.messages[0].text == ""


def test_an_edited_conversation_goes_out_as_edited(tmp_path: Path, pictures: Path) -> None:
    dataset = import_llava(write(tmp_path / "in.json", PRETRAIN), pictures, tmp_path / "ds")
    one = dataset.conversations()[0]
    answer = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": [{"type": "text", "text": "me"}]}]
    answer[0]["content"] = [
        {"type": "image", "path": one.images[0].path, "root": "images"},
        {"type": "text", "text": "Who?"},
    ]
    dataset.edit({"table": "conversations", "id": one.id, "set": {"messages": answer}})
    export_llava(dataset, tmp_path / "out.json")
    assert read(tmp_path / "out.json")[0] == {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": [turn("human", "<image>\nWho?"), turn("gpt", "me")],
    }


def test_missing_and_broken_images_are_listed_and_their_conversations_left_out(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "00453/004539375.jpg").unlink()
    climbing = {
        "id": "up",
        "image": "../secret.jpg",
        "conversations": [turn("human", "<image>\nhm"), turn("gpt", "no")],
    }
    dataset = import_llava(write(tmp_path / "in.json", [*PRETRAIN, climbing]), pictures, tmp_path / "ds")
    assert [one.source["foreign_id"] for one in dataset.conversations()] == ["002239345", "002239346"]
    assert dataset.conversation_rows.height == 4, "nothing is lost"
    report = json.loads((tmp_path / "ds/import.json").read_text())["quarantined images"]
    assert report == {"no such file": ["00453/004539375.jpg"], "a path that climbs out of its root": ["../secret.jpg"]}
    assert "no such file: 1: 00453/004539375.jpg" in capsys.readouterr().out


BAD: list[tuple[Any, Any, str]] = [
    (
        {"id": "x", "image": "a.jpg", "conversations": [turn("human", "hm"), turn("gpt", "a")]},
        "x",
        "0 <image> marks and 1 images",
    ),
    (
        {"id": "x", "conversations": [turn("human", "<image>\nhm"), turn("gpt", "a")]},
        "x",
        "1 <image> marks and 0 images",
    ),
    ({"id": "x", "conversations": [turn("human", "hm"), turn("bot", "a")]}, "x", "from 'bot'; expected human or gpt"),
    ({"id": "x", "conversations": [turn("human", "hm"), turn("human", "a")]}, "x", "user and assistant alternate"),
    ({"id": "x", "conversations": [turn("human", "hm"), turn("gpt", " ")]}, "x", "an empty assistant message"),
    ({"id": "x", "conversations": []}, "x", "no user message"),
    ({"id": "x", "conversations": [{"from": "human", "value": None}]}, "x", "value None; expected a text"),
    ({"id": "x", "conversations": ["hello"]}, "x", 'expected a list of {"from", "value"}'),
    ({"id": "x", "image": 5, "conversations": [turn("human", "hm")]}, "x", "image 5; expected a path"),
    ({"id": "x", "videos": ["a.mp4"], "conversations": [turn("human", "hm")]}, "x", 'videos; expected "video": a path'),
    ({"id": "x"}, "x", "conversations 'None'"),
    ({"id": 7}, 7, "conversations 'None'"),
    (5, "record 2", "found int"),
    ({"conversations": [turn("gpt", "a")]}, "record 2", "user and assistant alternate"),
    ({"id": "x", "conversations": [turn("human", "hm"), turn("gpt", "a\ud800")]}, "x", r"not Unicode ('\ud800')"),
    ({"id": "\ude00", "conversations": [turn("human", "hm")]}, "record 2", r"not Unicode ('\ude00')"),
]


@pytest.mark.parametrize(("record", "name", "words"), BAD)
def test_a_record_that_breaks_the_shape_is_named_and_the_others_are_read(
    tmp_path: Path, record: Any, name: Any, words: str
) -> None:
    good, bad, last = read_conversations(write(tmp_path / "a.json", [PRETRAIN[0], record, MIX[1]]))
    assert isinstance(good, Conversation) and isinstance(last, Conversation)
    assert isinstance(bad, BadRecord) and bad.id == name
    assert words in bad.error


def test_bad_records_of_an_import_are_listed(tmp_path: Path, pictures: Path) -> None:
    dataset = import_llava(write(tmp_path / "in.json", [*PRETRAIN, BAD[0][0]]), pictures, tmp_path / "ds")
    assert len(dataset.conversations()) == 3
    assert dataset.card["import"] == {"conversations": 3, "quarantined images": {}, "bad records": 1}
    assert "0 <image> marks" in json.loads((tmp_path / "ds/import.json").read_text())["bad records"][0]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_half_a_character_costs_its_record_alone(
    tmp_path: Path, pictures: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One such answer once ended the whole import, which named an id of ours; emoji are written as two halves."""
    lone = {"id": "lone", "conversations": [turn("human", "hm"), turn("gpt", "\ud800")]}
    smile = {"id": "\U0001f600", "conversations": [turn("human", "hm"), turn("gpt", "\U0001f600")]}
    dataset = import_llava(write(tmp_path / f"in{ending}", [*PRETRAIN, lone, smile]), pictures, tmp_path / "ds")
    assert dataset.conversations()[-1].reference == "\U0001f600" and len(dataset.conversations()) == 4
    told = r"lone: record: found text that is not Unicode ('\ud800'); expected text that can be saved"
    assert json.loads((tmp_path / "ds/import.json").read_text())["bad records"] == [told]
    assert told in capsys.readouterr().out


def test_a_broken_line_is_named_and_the_next_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(MIX[1])}\n{{oops\n\n{json.dumps(MIX[2])}\n")
    first, bad, last = read_conversations(tmp_path / "a.jsonl")
    assert isinstance(bad, BadRecord) and bad.id == "line 2" and "broken JSON" in bad.error
    assert isinstance(first, Conversation) and isinstance(last, Conversation)


@pytest.mark.parametrize("cut", [5, 40, -3, -1])
def test_a_list_that_is_cut_off_says_so_after_its_whole_records(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.json").write_text(json.dumps(PRETRAIN)[:cut])
    with pytest.raises(DataError, match=r"a.json: found broken or cut-off JSON behind record \d .* get the file again"):
        list(read_conversations(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with ''"),
        (b"id,text\n", "begins with 'i'"),
        (b'[{"id": "\xff"}]', "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_neither_says_what_was_expected(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_conversations(tmp_path / "a.json"))
    assert words in str(caught.value)


json_text = st.text(max_size=30)


@settings(max_examples=30)
@given(values=st.lists(st.dictionaries(json_text, json_text, max_size=3), max_size=5), chunk=st.integers(1, 50))
def test_a_list_is_read_equal_whatever_the_pieces(tmp_path: Path, values: list[Any], chunk: int) -> None:
    for text in (json.dumps(values), json.dumps(values, indent=3, ensure_ascii=False)):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        before, json_records._CHUNK = json_records._CHUNK, chunk
        try:
            with open(tmp_path / "a.json", encoding="utf-8", newline="") as file:
                assert [record for _, record in json_records._list(tmp_path / "a.json", file)] == values
        finally:
            json_records._CHUNK = before


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([MIX[1]] * 5000)[:-5])
    records = read_conversations(tmp_path / "a.json")
    assert isinstance(next(records), Conversation)  # the end of the file is broken, and not read yet


def test_conversations_that_the_shape_cannot_hold_are_named(tmp_path: Path) -> None:
    def ask(*content: Any) -> Conversation:
        return Conversation("c1", (Message("user", content), Message("assistant", "hm")))

    dataset = Dataset.create(tmp_path / "ds", name="x", roots={"images": "i", "scans": "s"})
    for content, words in (
        (("What does <image> mean?",), "the text <image>"),
        ((Image("a.png"), Image("b.png", "scans"), "Same?"), "images of two roots"),
    ):
        dataset.write_conversations([ask(*content)])
        with pytest.raises(DataError, match=f"conversation c1: found {words}"):
            export_llava(dataset, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()


def test_a_conversation_that_went_out_comes_back_with_its_id(tmp_path: Path, pictures: Path) -> None:
    dataset = import_llava(write(tmp_path / "in.json", MIX[1:2]), pictures, tmp_path / "ds")
    made = Conversation(new_id("x"), (Message("user", (Image("a.jpg"), "What?")), Message("assistant", "Red.")))
    dataset.write_conversations([made])
    export_llava(dataset, tmp_path / "out.json")
    assert import_llava(tmp_path / "out.json", pictures, tmp_path / "again").conversations() == [made]


@pytest.mark.parametrize(("records", "words"), [([], "no record"), ([5], "no conversation among 1 records; the first")])
def test_a_file_without_a_conversation_says_so(tmp_path: Path, pictures: Path, records: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=f"in.json: found {words}"):
        import_llava(write(tmp_path / "in.json", records), pictures, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()


# --- killed -----------------------------------------------------------------------------------------------------

KILLED = f"""
{COUNTED}
import sys
from workbench.data import tables
from workbench.data.formats import import_llava

tables.SHARD, tables._CHUNK = 4, 2
kill_before(int(sys.argv[4]), "replace", "fsync")
import_llava(sys.argv[1], sys.argv[2], sys.argv[3], workers=1)
print(left)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_killed_before_any_step_on_the_disk_an_import_begins_anew(tmp_path: Path, pictures: Path) -> None:
    file = write(tmp_path / "mix.json", [record for record in PRETRAIN + MIX for _ in range(2)])
    whole = _import(file, pictures, tmp_path / "whole", 10_000)
    steps = 10_000 - int(whole.stdout.splitlines()[-1])
    files = _files(tmp_path / "whole")
    assert steps > 20 and sum(name.startswith("conversations/part-") for name in files) == 4
    for step in range(1, steps + 1, 3):
        out = tmp_path / f"killed-{step}"
        assert _import(file, pictures, out, step).returncode == -signal.SIGKILL
        if (out / "card.yaml").exists():  # the card is the last step
            assert step > steps - 2
            continue
        with pytest.raises(DataError, match="import was interrupted"):
            Dataset.open(out)
        assert _import(file, pictures, out, 10_000).returncode == 0
        assert _files(out) == files
        assert Dataset.open(out).conversations() == Dataset.open(tmp_path / "whole").conversations()
    assert _import(file, pictures, tmp_path / "small", 9).returncode == -signal.SIGKILL
    import_llava(write(tmp_path / "few.json", PRETRAIN), pictures, tmp_path / "small", workers=1)
    assert len(Dataset.open(tmp_path / "small").conversations()) == 3, "shards of the interrupted one do not count"


def _import(file: Path, pictures: Path, out: Path, step: int) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "PYTHONPATH": str(Path(json_records.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(file), str(pictures), str(out), str(step)]
    return subprocess.run(command, capture_output=True, text=True, env=here)


def _files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*")}


def test_videos_come_in_and_go_out_and_one_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"id": name, "video": f"{name}.mp4", "conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "a cat")]}
        for name in ("a", "b", "gone")
    ]
    records[1]["conversations"][0]["value"] = "What?\n<video>"
    records.append({"id": "both", "image": "c.png", "video": "a.mp4", "conversations": [
        turn("human", "<image>\n<video>\nSame?"), turn("gpt", "No.")]})  # fmt: skip
    for name in "ab":
        (tmp_path / "media").mkdir(exist_ok=True)
        moving(tmp_path / "media" / f"{name}.mp4", 3)
    PILImage.new("RGB", (6, 4)).save(tmp_path / "media" / "c.png")
    file = write(tmp_path / "talks.json", records)
    told = [{"system": "Be brief.", **one} for one in records]
    assert recognise(file) == recognise(write(tmp_path / "told.json", told)) == "llava"
    dataset = import_llava(file, tmp_path / "media", tmp_path / "out")
    said = capsys.readouterr().out
    assert "quarantined videos, no such file: 1: gone.mp4" in said
    assert "4 conversations about 1 images and 3 videos in " in said
    assert dataset.card["import"]["videos"] == 3
    made = dataset.conversations()
    assert [type(part).__name__ for one in made for part in one.media] == ["Video", "Video", "Image", "Video"]
    assert all(dataset.resolve(part).is_file() for one in made for part in one.media)
    assert Dataset.open(tmp_path / "out").conversations() == made, "Parquet keeps them"
    assert export_llava(dataset, tmp_path / "again.json") == 3
    assert json.loads((tmp_path / "again.json").read_text()) == [records[0], records[1], records[3]]
