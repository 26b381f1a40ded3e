"""`workbench import` and `workbench export` for every format, as a newcomer types them; every mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from workbench import cli
from workbench.data.dataset import Dataset


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, the dataset of them with conversations, an empty folder and some documents."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat/1.png", "cat/2.png", "dog/3.png")):
        Path("pictures", name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (30 + number, 20), (80 * number, 10, 10)).save(Path("pictures", name))
    Path("empty").mkdir()
    Path("papers").mkdir()
    PILImage.new("RGB", (72, 72)).save("papers/a.pdf", resolution=72)
    assert cli.main(["import", "pictures", "--out", "data"]) == 0
    assert cli.main(["generate", "data"]) == 0
    return tmp_path


def called(words: str, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    status = cli.main([*words.split(), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("form", "out", "more"),
    [
        ("llava", "x.json", " --images pictures"),
        ("sharegpt", "x.jsonl", " --images pictures"),
        ("coco", "x.json", " --images pictures"),
        ("hf-dataset", "x", ""),
        ("images", "x", ""),
    ],
)
def test_out_by_one_command_and_in_by_another(
    form: str, out: str, more: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = called(f"export data {out} --as {form}", capsys)["count"]
    talks = len(Dataset.open("data").conversations())
    assert count == (3 if form in ("coco", "images") else talks) and talks > 3
    counts = called(f"import {out} --out again{more} --name mine", capsys)["counts"]
    again = Dataset.open("again")
    assert counts["images"] == 3 or again.images.height == 3
    assert again.name == "mine" and len(again.conversations()) == (0 if form in ("coco", "images") else talks)
    if form in ("coco", "images"):
        assert sorted(again.images["label"]) == ["cat", "cat", "dog"]


def test_documents_at_a_resolution_and_one_split(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called("import papers --out pages --dpi 36", capsys)
    assert Dataset.open("pages").images.select("path", "width").rows() == [("a.pdf/0001.png", 36)]
    assert cli.main("export data test.json --as llava --split test".split()) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("import empty --out x", "empty: found an empty folder; expected pictures: JPEG"),
        ("import pictures --format imges --out x", "format: found 'imges'.*did you mean images?"),
        ("import pictures --dpi 90 --out x", "option dpi: found it for the format images"),
        ("import pictures papers --out x", "pictures, papers: found 2 sources; expected one, or COCO files"),
        ("import llava.json --out x", "llava.json: found none of its 1 images below .*--images FOLDER"),
        ("import absolute.json --images pictures --out x", "below pictures; the first: /a/b.jpg.*relative to one"),
        ("import no/where --out x", "no/where: found no file or folder of that name, and no connection to the Hub"),
        ("import data --out x", "data: found a dataset already"),
        ("export data x.json --as lava", "format: found 'lava'.*did you mean llava?"),
        (
            "export data x",
            "data: found a dataset; expected with --as hf the run folder of a model; --as llava, sharegpt",
        ),
        ("export pictures x.json --as llava", "make one first: workbench import pictures --out DIR"),
        ("generate pictures", "pictures: found no card.yaml.*make one first: workbench import pictures --out DIR"),
        ("curate pictures --set filters.aspect.max=2", "--set: found no recipe to change; expected --recipe"),
        ("curate pictures", "pictures: found no card.yaml.*make one first: workbench import pictures --out DIR"),
        ("render data --template v1 --tokenizer TINY", "data: found a folder.*workbench export DATASET FILE.json"),
        ("open data --port 70000", "port 70000: found no port number; expected 1 to 65535"),
        ("export data pictures --as images", "pictures: found something of that name"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    from workbench.resources import tiny_folder

    record = {"id": "1", "image": "gone.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                               {"from": "gpt", "value": "A cat."}]}  # fmt: skip
    Path("llava.json").write_text(json.dumps([record]))
    Path("absolute.json").write_text(json.dumps([record | {"image": "/a/b.jpg"}, record]))
    capsys.readouterr()
    assert cli.main(words.replace("TINY", str(tiny_folder() / "language")).split()) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and re.search(message, err), err
    assert not Path("x").exists() and not Path("x.json").exists()


def test_an_import_without_a_usable_picture_names_no_next_step(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged").mkdir()
    Path("damaged", "a.jpg").write_bytes(b"\xff\xd8\xff\xe0nothing")
    assert cli.main(["import", "damaged", "--out", "x"]) == 0
    out = capsys.readouterr().out
    assert "no picture in x can be used" in out and "next:" not in out


def test_bad_records_are_told_each_on_a_line_and_to_a_program_all(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    good = {"id": "good", "image": "cat/1.png", "conversations": turns}
    Path("mixed.json").write_text(json.dumps([{**good, "id": f"bad{n}", "image": None} for n in range(12)] + [good]))
    assert cli.main("import mixed.json --images pictures --out plain".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("  bad records: 12") + 1
    assert [line.split(":")[0] for line in lines[first : first + 10]] == [f"    bad{number}" for number in range(10)]
    assert lines[first + 10 : first + 12] == ["    and 2 more", f"  all names: {Path('plain', 'import.json')}"]
    told = called("import mixed.json --images pictures --out json", capsys)["report"]["bad records"]
    assert len(told) == 12 and told[11].startswith("bad11: ") and "1 <image> marks and 0 images" in told[11]
