"""What people voted on answers of a demo, as verdicts on conversations.

Knows: the votes in `feedback.jsonl` (`serving/demo/feedback.py` writes it): up, down, `flag: ` and what it is, and
withdrawn; that the last one on an answer counts, and which of them reject it.
Does not know: how records become conversations (`llava_json.py`), or images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.conversation import Conversation
from workbench.data.json_records import BadRecord

EARLIER = "earlier votes on the same answers"
"""What a report calls the lines that a later one takes the place of."""


@dataclass(frozen=True)
class Voted:
    """The records of a file of votes, one per answer."""

    records: list[Conversation | BadRecord]
    """With `metadata["verdict"]` accept or reject, as a person gives it in FiftyOne; none for a withdrawn vote."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Id -> why, of those whose last vote is not up."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many answers have which vote, and how many lines were earlier votes."""


def is_vote(record: Any) -> bool:
    """Whether a record of a LLaVA file is a line of a demo's feedback."""
    vote = record.get("vote") if isinstance(record, Mapping) else None
    return vote in ("up", "down", "withdrawn") or (isinstance(vote, str) and vote.startswith("flag:"))


def voted(records: Iterable[Conversation | BadRecord]) -> Voted:
    """The last vote on every answer: of one model, to one conversation. Records without a vote stay as they are."""
    last: dict[str, Conversation | BadRecord] = {}
    votes: dict[str, str] = {}
    lines = 0
    for number, record in enumerate(records):
        line = record.metadata.get("llava", {}) if isinstance(record, Conversation) else {}
        if not isinstance(record, Conversation) or not is_vote(line):
            last[str(number)] = record
            continue
        answer = json.dumps([line.get("model"), line.get("image"), line["conversations"]])
        last.pop(answer, None)
        verdict = {"up": "accept", "withdrawn": None}.get(line["vote"], "reject")
        metadata = {**record.metadata, "verdict": verdict} if verdict else record.metadata
        last[answer], votes[answer] = replace(record, metadata=metadata), line["vote"]
        lines += 1
    rejected = {last[answer].id: f"rejected by a vote: {vote}" for answer, vote in votes.items() if vote != "up"}
    earlier = {EARLIER: lines - len(votes)} if lines > len(votes) else {}
    return Voted(list(last.values()), rejected, {**Counter(votes.values()), **earlier})
