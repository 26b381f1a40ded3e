"""What a person says about conversations while looking at them in FiftyOne: verdicts and corrected turns.

Knows: the dataset folder is written first (and is on the disk), then the label that shows the conversation.
Does not know: panels, keys or browsers. An image or conversation that the view lacks is no error here: the folder
is the truth, and `to_fiftyone` builds the view anew.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.conversation import Conversation, to_chat
from workbench.curation.database import database_errors
from workbench.curation.documents import LABELS, readable
from workbench.curation.table import VERDICTS
from workbench.curation.turns import REGENERATED
from workbench.data.dataset import Dataset
from workbench.errors import DataError

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection


def person() -> str:
    """Who is at this machine, for the lineage; a container may know nobody."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def dataset_of(view: SampleCollection) -> Dataset:
    """The dataset folder that a FiftyOne dataset or view was made from. Raises `DataError` where there is none."""
    made = view._root_dataset
    path = (made.info.get("workbench") or {}).get("dataset")
    if path is None:
        raise DataError(
            f"FiftyOne dataset {made.name!r}",
            found="one that was not made from a dataset folder",
            fix="use to_fiftyone",
        )
    return _opened(path)


@lru_cache(maxsize=16)
def _opened(path: str) -> Dataset:
    """One `Dataset` per folder: it reads a table again only when the folder has changed."""
    return Dataset.open(path)


def conversations(view: SampleCollection | Dataset | str | Path) -> list[Conversation]:
    """The conversations whose labels the view shows, as the dataset folder has them now; only those that are ok.

    Of a `Dataset` or its folder, which shows everything, all that are ok. Raises `DataError` for anything else.

    >>> len(wb.conversations("data"))
    164
    """
    if not hasattr(view, "values"):
        return list(Dataset.open(view).iter_conversations())
    shown = {name for names in view.values(f"{LABELS}.conversation_id") for name in names or []}
    return [one for one in dataset_of(view).iter_conversations() if one.id in shown]


def give_verdict(view: SampleCollection, name: str, verdict: str, *, who: str) -> None:
    """Accept or reject the conversation with the id `name`; on the disk when this returns.

    A rejected one is kept with the status `removed`; an accepted one is `ok`, whatever a check said before. Raises
    `DataError` for another verdict or an unknown id.
    """
    if verdict not in VERDICTS:
        raise DataError(f"conversation {name}", found=f"verdict {verdict!r}", expected=" or ".join(VERDICTS))
    dataset = dataset_of(view)
    metadata = {**dataset.find(name)[0].metadata, "verdict": verdict}
    rejected = verdict == "reject"
    state = {"status": "removed" if rejected else "ok", "reason": f"rejected by {who}" if rejected else None}
    _save(view, dataset, name, {"metadata": metadata, **state}, who)


def edit_messages(view: SampleCollection, name: str, messages: Sequence[Mapping[str, Any]], *, who: str) -> None:
    """Replace the turns of a conversation, in the chat shape: how a turn is changed, added or deleted.

    What it said before stays in `source["edits"]`. Turns that are as they were write nothing. Raises `DataError` or
    `ConversationError` for turns that do not make a conversation; then nothing has changed.
    """
    dataset = dataset_of(view)
    if list(messages) != to_chat(dataset.find(name)[0]):
        _save(view, dataset, name, {"messages": list(messages)}, who)


def rewrite(view: SampleCollection, new: Conversation, *, rejected: str | None = None, who: str) -> None:
    """A teacher's new text takes the place of the conversation with the id of `new`; what it said before is kept.

    The verdict on the old text goes. `rejected`: why a check would not keep it. Raises as `edit_messages` does.
    """
    dataset = dataset_of(view)
    metadata = {key: value for key, value in dataset.find(new.id)[0].metadata.items() if key != "verdict"}
    state = {"status": "removed" if rejected else "ok", "reason": rejected, "metadata": metadata}
    values = {"messages": to_chat(new), "source": dict(new.source), **state}
    _save(view, dataset, new.id, values, who, why=f"{REGENERATED} by {new.source.get('teacher', 'a teacher')}")


def _save(
    view: SampleCollection, dataset: Dataset, name: str, values: Mapping[str, Any], who: str, why: str | None = None
) -> None:
    said = {"why": why} if why else {}
    dataset.edit({"table": "conversations", "id": name, "set": dict(values), "who": who, **said})
    _show(view, name, *dataset.find(name))


def _show(view: SampleCollection, name: str, conversation: Conversation, status: str, reason: str | None) -> None:
    """Bring the label up to date, in the database; samples already held in Python see it after `reload`.

    Tags that give a verdict go: they would count more than what was said last.
    """
    new = {
        "messages": json.dumps(to_chat(conversation), ensure_ascii=False),
        "text": readable(conversation),
        "status": status,
        "reason": reason,
        "verdict": conversation.metadata.get("verdict"),
    }
    change = {
        "$set": {**{f"{LABELS}.$.{key}": value for key, value in new.items()}, "last_modified_at": datetime.now(UTC)},
        "$pull": {f"{LABELS}.$.tags": {"$in": list(VERDICTS)}},
    }
    with database_errors():
        view._root_dataset._sample_collection.update_one({f"{LABELS}.conversation_id": name}, change)
