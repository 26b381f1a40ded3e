"""A dataset is judged over HTTP: replies are kept, verdicts compared, low scores rejected, people's word left alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest

from workbench.cli import main
from workbench.data.dataset import Dataset
from workbench.data.scene_files import Planted, make
from workbench.errors import DataError
from workbench.instruct.generator import generate
from workbench.instruct.judging import judge_dataset
from workbench.instruct.limits import Budget


class Judge(BaseHTTPRequestHandler):
    """Gives everything 9; keeps what it is asked."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        said = {"role": "assistant", "content": json.dumps({"reason": "because", "score": 9})}
        reply = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }  # fmt: skip
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Judge,), {"asked": asked}))
    thread = Thread(target=http.serve_forever)
    thread.start()
    yield f"mistral-judge@http://127.0.0.1:{http.server_port}/v1", asked
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    dataset = make(tmp_path / "scenes", count=4, planted=Planted(exact=0, near=0, broken=0))
    generate(dataset, tasks=["conversation", "detail"])
    return dataset


def test_every_reply_is_kept_and_a_second_run_asks_nothing(scenes: Dataset, server: Any) -> None:
    url, asked = server
    first = judge_dataset(scenes, url)
    count = len(scenes.conversations())
    assert len(asked) == count == first.table.height and first.outcome.asked == count
    assert all(one["temperature"] == 0 and "image_url" in json.dumps(one) for one in asked)
    again = judge_dataset(scenes, url)
    assert len(asked) == count and again.outcome.stored == count
    assert again.table.equals(first.table)


def test_a_person_s_verdicts_are_compared_and_kept(scenes: Dataset, server: Any) -> None:
    url, _ = server
    names = [one.id for one in scenes.conversations()]
    for name, verdict in ((names[0], "accept"), (names[1], "reject")):
        state = {"status": "removed", "reason": "rejected by ann"} if verdict == "reject" else {}
        change = {"metadata": {"verdict": verdict}, **state}
        scenes.edit({"table": "conversations", "id": name, "set": change, "who": "ann"})
    judged = judge_dataset(scenes, url, accept_from=10, reject=True)
    assert judged.agreement is not None and judged.agreement.n == 2 and judged.agreement.accuracy == 0.5
    assert judged.rejected == len(names) - 2
    assert [one.id for one in scenes.conversations()] == [names[0]], "what a person accepted stays"
    reasons = scenes.conversation_rows.filter(pl.col("id").is_in(names[1:]))["reason"].to_list()
    assert reasons[0] == "rejected by ann" and all("judge mistral-judge: " in text for text in reasons[1:])


def test_a_budget_ends_it_and_what_was_not_judged_says_so(scenes: Dataset, server: Any) -> None:
    url, asked = server
    judged = judge_dataset(scenes, url, budget=Budget(calls=3))
    assert len(asked) == 3
    assert judged.table["score"].drop_nulls().len() == 3
    assert "budget of 3 calls" in judged.table["failed"].drop_nulls()[0]


def test_the_command_writes_scores_and_says_what_people_think(
    scenes: Dataset, server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = server
    assert main(["judge", str(scenes.path), "--judge", url, "--out", str(tmp_path / "s.csv")]) == 0
    assert "no verdict yet" in capsys.readouterr().out
    assert pl.read_csv(tmp_path / "s.csv").height == len(scenes.conversations())


def test_nothing_to_judge_and_a_judge_of_rules_are_refused(tmp_path: Path) -> None:
    empty = make(tmp_path / "scenes", count=1, planted=Planted(exact=0, near=0, broken=0))
    with pytest.raises(DataError, match="workbench generate"):
        judge_dataset(empty, "m@http://127.0.0.1:9/v1")
    with pytest.raises(DataError, match="MODEL@URL"):
        judge_dataset(empty, "rules")
