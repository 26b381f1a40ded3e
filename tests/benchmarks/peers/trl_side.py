"""TRL's SFTTrainer, as its vision example sets it up, or tuned.

    python trl_side.py JOB.json        (in TRL's environment)

Knows: TRL's settings. `mode`: `documented` (its defaults, `max_length=None`: every token is trained on), `assistant`
(the same with `assistant_only_loss`), `tuned` (that, without activation checkpointing).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from marks import Marks
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from datasets import Dataset, Features, Image, List, Value


def dataset(job: dict[str, Any]) -> Dataset:
    """The rows in the order of the steps, as TRL asks for them: `messages` and `images`."""
    by_id = {row["id"]: row for row in json.loads(Path(job["rows"]).read_text())}
    made = []
    for row in (by_id[id] for batch in job["batches"] for id in batch):
        said = [
            {
                "role": "user" if turn["from"] == "human" else "assistant",
                "content": turn["value"].replace("<image>\n", ""),
            }
            for turn in row["conversations"]
        ]
        made.append({"messages": said, "images": [str(Path(job["images"]) / row["image"])]})
    turn = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_list(made, features=Features({"messages": List(turn), "images": List(Image())}))


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """What is not TRL's default."""
    chosen: dict[str, Any] = {} if job["mode"] != "tuned" else {"gradient_checkpointing": False}
    if job["mode"] != "documented":
        chosen["assistant_only_loss"] = True
    return {
        "output_dir": job["out"],
        "max_length": None,  # else image tokens are cut off, its documentation says
        "per_device_train_batch_size": job["per_device"],
        "gradient_accumulation_steps": len(job["batches"][0]) // job["per_device"],
        "max_steps": len(job["batches"]),
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **chosen,
    }


def trainer(job: dict[str, Any]) -> SFTTrainer:
    model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32)
    return SFTTrainer(
        model=PeftModel.from_pretrained(model, job["adapter"], is_trainable=True),
        args=SFTConfig(**settings(job), use_cpu=True, bf16=False),
        train_dataset=dataset(job),
        processing_class=AutoProcessor.from_pretrained(job["model"]),
        callbacks=[Marks(job["log"])],
    )


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(given["threads"])
    made = trainer(given)
    if given.get("show"):  # the first batch as the trainer makes it, to compare
        first = made.data_collator([made.train_dataset[at] for at in range(given["per_device"])])
        names = ("input_ids", "attention_mask", "labels")
        Path(given["show"]).write_text(json.dumps({name: first[name].tolist() for name in names}))
    else:
        made.train()
        made.save_model(given["out"])
