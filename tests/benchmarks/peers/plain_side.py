"""The plain way: transformers' LLaVA and peft, a padded batch, logits of every token, labels masked.

    python plain_side.py JOB.json

Knows: a training loop as it is written by hand. Does not know: anything of workbench. The other sides' rows are read
and judged here too: `python plain_side.py judge JOB.json ADAPTER` prints the loss of all rows under an adapter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


def load(job: dict[str, Any], adapter: str | Path, *, train: bool) -> tuple[Any, Any]:
    torch.set_num_threads(job["threads"])
    model = LlavaForConditionalGeneration.from_pretrained(job["model"], dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=train), AutoProcessor.from_pretrained(job["model"])


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as chat messages, its picture as the first part of the first question."""
    made = []
    for turn in row["conversations"]:
        role = "user" if turn["from"] == "human" else "assistant"
        parts: list[dict[str, str]] = [{"type": "text", "text": turn["value"].replace("<image>\n", "")}]
        made.append({"role": role, "content": parts if made else [{"type": "image"}, *parts]})
    return made


def encode(processor: Any, rows: Sequence[dict[str, Any]], images: str) -> dict[str, torch.Tensor]:
    """(B, T) ids, mask and labels, padded on the right, and (B, 3, H, W) pixels."""
    texts = [processor.apply_chat_template(messages(row), tokenize=False) for row in rows]
    pictures = [Image.open(Path(images) / row["image"]).convert("RGB") for row in rows]
    batch = processor(images=pictures, text=texts, padding=True, add_special_tokens=False, return_tensors="pt")
    batch["labels"] = torch.stack([mask_prompt(ids, processor.tokenizer) for ids in batch["input_ids"]])
    return dict(batch)


def mask_prompt(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Labels: what lies between `ASSISTANT:` and the end token, the end token included."""
    speak, colon, end = (tokenizer.convert_tokens_to_ids(token) for token in ("ASSISTANT", ":", "</s>"))
    labels, inside, held = torch.full_like(ids, -100), False, ids.tolist()
    for place, id in enumerate(held):
        if inside:
            labels[place] = id
            inside = id != end
        elif held[place - 1 : place + 1] == [speak, colon]:
            inside = True
    return labels


def steps(job: dict[str, Any]) -> Iterator[list[list[dict[str, Any]]]]:
    """Every step's micro-batches of rows."""
    rows, size = json.loads(Path(job["rows"]).read_text()), job["per_device"]
    by_id = {row["id"]: row for row in rows}
    for batch in job["batches"]:
        held = [by_id[id] for id in batch]
        yield [held[start : start + size] for start in range(0, len(held), size)]


def train(job: dict[str, Any]) -> None:
    model, processor = load(job, job["adapter"], train=True)
    model.train()
    model.base_model.model.model.vision_tower.eval()
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=job["lr"], weight_decay=0.0, fused=True)
    with open(job["log"], "a", encoding="utf-8", buffering=1) as log:
        for parts in steps(job):
            batches = [encode(processor, part, job["images"]) for part in parts]
            count, total = sum(int((batch["labels"] != -100).sum()) for batch in batches), 0.0
            for batch in batches:
                loss = model(**batch, num_items_in_batch=torch.tensor(count)).loss
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            log.write(json.dumps({"loss": total, "supervised": count}) + "\n")
    model.save_pretrained(job["out"])


@torch.no_grad()
def judge(job: dict[str, Any], adapter: str | Path) -> float:
    """Mean loss of the supervised tokens of every row, one row at a time."""
    model, processor = load(job, adapter, train=False)
    total, count = 0.0, 0
    for row in json.loads(Path(job["rows"]).read_text()):
        batch = encode(processor, [row], job["images"])
        places = (batch["labels"][:, 1:] != -100).nonzero()[:, 1]
        logits = model(**{name: held for name, held in batch.items() if name != "labels"}).logits[0, places].double()
        wanted = batch["labels"][0, places + 1]
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        count += len(wanted)
    return total / count


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        print(json.dumps({"loss": judge(json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])}))
    else:
        train(json.loads(Path(sys.argv[1]).read_text()))
