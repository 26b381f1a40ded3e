"""Hugging Face datasets: Arrow folders, Parquet files and the Hub, in and out; broken rows are named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import datasets
from workbench.conversation import Conversation, Image, Message, new_id
from workbench.data.dataset import Dataset
from workbench.data.formats import export_hf, import_folder, import_hf
from workbench.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import PlaysHub, playing  # noqa: E402

A, B = Image("a.png"), Image("sub/b.png")
EVERY_KIND = [
    Conversation(new_id("one"), (Message("user", (A, "What?")), Message("assistant", "A cat.")), "train", "question"),
    Conversation(
        new_id("two"),
        (
            Message("system", "Be brief."),
            Message("user", (A, B, "Is ", A, " like the other?\n", "ä 漢字 <b>")),
            Message("assistant", "No.\n"),
            Message("user", ("And ", B)),
            Message("assistant", " Yes."),
        ),
        "val",
        source={"teacher": "rules", "foreign_id": 7},
    ),
    Conversation(new_id("three"), (Message("user", "Hello"), Message("assistant", "Hi")), "test"),
    Conversation(new_id("four"), (Message("user", (B,)), Message("assistant", "A dog."))),
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for name, color in (("a.png", "red"), ("sub/b.png", "blue")):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (40, 30), color).save(tmp_path / "pictures" / name)
    made = import_folder(tmp_path / "pictures", tmp_path / "before", workers=1)
    made.write_conversations(EVERY_KIND)
    return made


def picture(color: str, kind: str = "JPEG") -> dict[str, Any]:
    buffer = io.BytesIO()
    PILImage.new("RGB", (20, 10), color).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def turns(question: Any, answer: Any = "Red.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_out_and_in_again_is_equal(dataset: Dataset, tmp_path: Path) -> None:
    assert export_hf(dataset, tmp_path / "hf") == 4
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "test.parquet", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    again = import_hf(tmp_path / "hf", tmp_path / "again", workers=1)
    by_id = {one.id: one for one in again.conversations()}
    assert by_id == {one.id: one for one in EVERY_KIND}
    assert {by_id[one.id].source.get("teacher") for one in EVERY_KIND} == {None, "rules"}
    for image in (A, B):
        assert again.resolve(image).read_bytes() == dataset.resolve(image).read_bytes()
    assert again.roots["images"] == (tmp_path / "again/media").absolute()


def test_the_datasets_library_reads_what_we_write_and_we_read_what_it_writes(dataset: Dataset, tmp_path: Path) -> None:
    export_hf(dataset, tmp_path / "hf")
    held = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in held.items()} == {"train": 2, "validation": 1, "test": 1}
    assert held["train"][0]["images"][0].getpixel((0, 0)) == (255, 0, 0)
    held.save_to_disk(str(tmp_path / "arrow"))
    again = import_hf(tmp_path / "arrow", tmp_path / "again", workers=1)
    assert {one.id: one for one in again.conversations()} == {one.id: one for one in EVERY_KIND}

    held["train"].save_to_disk(str(tmp_path / "part"))
    held["train"].to_parquet(str(tmp_path / "one.parquet"))
    for source in (tmp_path / "part", tmp_path / "one.parquet"):
        part = import_hf(source, tmp_path / f"again-{source.name}", workers=1)
        assert part.conversations() == [EVERY_KIND[0], EVERY_KIND[3]] and part.name == source.stem


def test_a_dataset_of_others_gets_its_pictures_by_content_and_its_splits_from_the_files(tmp_path: Path) -> None:
    red, blue = picture("red"), picture("blue", "WEBP")
    table(tmp_path / "hf/data/train-00000-of-00001.parquet", [
        {"images": [red], "messages": turns("What colour?"), "id": "x1"},
        {"images": [red, blue], "messages": turns("<image>Same as <image>?", "No."), "id": "x2"},
    ])  # fmt: skip
    part = [{"type": "text", "text": "And"}, {"type": "image", "text": None}]
    table(tmp_path / "hf/test/0000.parquet", [{"image": blue, "messages": turns(part, part[:1])}])
    made = import_hf(tmp_path / "hf", tmp_path / "ds", workers=1)
    one, two, three = made.conversations()
    assert [part if isinstance(part, str) else "*" for part in one.messages[0].content] == ["*", "What colour?"]
    assert two.images[0] == one.images[0] and two.messages[0].content[1] == "Same as "
    assert three.messages[0].content[0] == "And" and three.split == "test" and {one.split, two.split} == {"train"}
    assert one.source == {"foreign_id": "x1"}
    assert sorted(path.suffix for path in (tmp_path / "ds/media").iterdir()) == [".jpg", ".webp"]
    assert made.images["status"].to_list() == ["ok", "ok"]


def test_every_broken_row_is_named_and_the_others_come_in(tmp_path: Path) -> None:
    red = picture("red")
    rows = [
        {"id": "good", "images": [red], "image_paths": ["a.jpg"], "messages": turns("What?")},
        {"id": "climbs", "images": [red], "image_paths": ["../../a.jpg"], "messages": turns("What?")},
        {"id": "two", "images": [red, red], "image_paths": ["a.jpg"], "messages": turns("What?")},
        {"id": "no bytes", "images": [{"bytes": None, "path": "gone.jpg"}], "messages": turns("What?")},
        {"id": "marks", "images": [red], "messages": turns("<image><image>")},
        {"id": "speaker", "images": [], "messages": [{"role": "robot", "content": "Hi"}]},
        {"id": "nothing", "images": [], "messages": None},
        {"id": "empty", "images": [], "messages": turns(None)},
        {
            "id": "other",
            "images": [picture("blue")],
            "image_paths": ["a.jpg"],
            "messages": turns("Another of its name"),
        },
    ]
    made = import_hf(table(tmp_path / "x.parquet", rows), tmp_path / "ds", workers=1)
    assert [one.source["foreign_id"] for one in made.conversations()] == ["good", "other"]
    bad = json.loads((tmp_path / "ds/import.json").read_text())["bad records"]
    for line, (name, reason) in zip(bad, [
        ("climbs", "climbs out of its root"), ("two", "2 images and 1 image_paths"), ("no bytes", "without its bytes"),
        ("marks", "more <image> marks than images"), ("speaker", "role 'robot'"), ("nothing", "messages None"),
        ("empty", "content 'None'"),
    ], strict=True):  # fmt: skip
        assert line.startswith(f"{name}: ") and reason in line
    assert len(made.images) == 2 and made.images["hash"].n_unique() == 2
    assert not (tmp_path / "a.jpg").exists()


def test_what_cannot_be_read_is_one_error_and_leaves_nothing_behind(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{")
    empty = table(tmp_path / "none.parquet", [{"messages": turns("a")}])
    pq.write_table(pq.read_table(empty).slice(0, 0), empty)
    other = table(tmp_path / "other.parquet", [{"text": "no conversation"}])
    for source, message in (
        (tmp_path / "empty", "no Parquet file and no saved dataset"),
        (tmp_path / "cut.parquet", "a damaged dataset"),
        (tmp_path / "saved", "a damaged dataset"),
        (empty, "no row; expected columns images and messages"),
        (tmp_path / "gone.parquet", "no such file or folder"),
        ("owner/name", "owner/name: found no file or folder of that name, and no connection to the Hub"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            import_hf(source, tmp_path / "ds", workers=1)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()
    with pytest.raises(DataError, match="columns text; expected images, and messages"):
        import_hf(other, tmp_path / "ds2", workers=1)

    dataset.resolve(B).unlink()
    with pytest.raises(DataError, match="No such file.*restore it"):
        export_hf(dataset, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# --- the Hub, played by a server on loopback ----------------------------------------------------------------------


class Hub(PlaysHub):
    """One dataset in Parquet, one without, one behind a gate."""

    parquet = b""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        owner = path.removeprefix("/api").removeprefix("/datasets/").split("/")[0]
        files = {"open": ["data/train.parquet", "README.md"], "text": ["train.csv"], "gated": ["train.parquet"]}
        files["broken"] = files["open"]
        if owner not in files or "/auth-check" in path:
            return self.send(403 if owner in files else 404, b"{}", {"X-Error-Code": "GatedRepo"})
        if "/resolve/" in path and owner == "broken" and self.command == "GET":
            self.close_connection = True
            return self.connection.close()
        if "/resolve/" in path:
            return self.send(200, self.parquet, {"ETag": '"1"', "X-Repo-Commit": "a" * 40})
        entries = [{"type": "file", "path": name, "size": len(self.parquet), "oid": "0"} for name in files[owner]]
        info = {
            "id": f"{owner}/set", "sha": "a" * 40, "private": False, "disabled": False, "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": one["path"], "size": one["size"]} for one in entries], "tags": [],
            "gated": "manual" if owner == "gated" else False, "cardData": {"license": "cc-by-4.0"},
        }  # fmt: skip
        self.send(200, json.dumps(entries if "/tree/" in path else info).encode(), {})

    do_HEAD = do_GET

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        super().send(status, data, {"X-Error-Code": "RepoNotFound"} if status == 404 else headers)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    file = table(tmp_path / "hub.parquet", [{"images": [picture("red")], "messages": turns("What?")}])
    Hub.parquet = file.read_bytes()
    with playing(Hub) as url:
        yield url


def from_hub(name: str, out: Path, hub: str) -> str:
    """What an import says, in a process that takes this server for the Hub."""
    code = textwrap.dedent("""
        import sys
        from workbench.data.formats import import_hf
        from workbench.errors import WorkbenchError
        try:
            card = import_hf(sys.argv[1], sys.argv[2], workers=1).card
            print(card["name"], "|", card["source"], "|", card["licence"])
        except WorkbenchError as error:
            print(error)
    """)
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(out.parent / "hf-home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", code, name, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_on_the_hub_is_said_with_its_size_and_licence_and_then_downloaded(hub: str, tmp_path: Path) -> None:
    lines = from_hub("open/set", tmp_path / "ds", hub).splitlines()
    assert lines[0] == "open/set: 0.00 GB in 1 files to download, licence cc-by-4.0"
    assert lines[-1] == f"set | Hugging Face Hub: open/set at {'a' * 40} | cc-by-4.0"
    assert len(Dataset.open(tmp_path / "ds").conversations("train")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text/set", "found no Parquet file on the Hub"),
        ("gated/set", "found a gate that this login has not passed"),
        ("nobody/set", "found neither a folder nor a dataset on the Hub"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(name: str, message: str, hub: str, tmp_path: Path) -> None:
    said = from_hub(name, tmp_path / "ds", hub)
    assert said.startswith(f"{name}: {message}") and len(said.splitlines()) == 1
    assert not (tmp_path / "ds").exists()


def test_a_download_that_breaks_off_is_told_after_its_size(hub: str, tmp_path: Path) -> None:
    lines = from_hub("broken/set", tmp_path / "ds", hub).splitlines()
    assert len(lines) == 2 and lines[1].startswith("broken/set: found a download that broke off")
    assert not (tmp_path / "ds").exists()
