"""LLaMA-Factory, as its LoRA example for vision models sets it up, or tuned.

    python llamafactory_side.py JOB.json        (in LLaMA-Factory's environment)

Knows: its settings and the shape of its data. `mode`: `documented` (one row a forward, activation checkpointing),
`tuned` (`per_device` rows, none), `packed` (`neat_packing`: rows end to end in sequences of `cutoff_len`, none).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from marks import Marks


def write_data(job: dict[str, Any], folder: Path) -> None:
    """The rows in the order of the steps as ShareGPT records, and the file that describes them.

    Its template `llava` is Vicuna's without a begin token, which every other side has: the system text brings it.
    """
    by_id = {row["id"]: row for row in json.loads(Path(job["rows"]).read_text())}
    made = []
    for row in (by_id[id] for batch in job["batches"] for id in batch):
        said = [{**turn, "value": turn["value"].replace("<image>\n", "<image>")} for turn in row["conversations"]]
        picture = str(Path(job["images"]) / row["image"])
        made.append({"system": f"<s>{job['system']}", "conversations": said, "images": [picture]})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(made))
    columns = {"messages": "conversations", "images": "images", "system": "system"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def settings(job: dict[str, Any], data: Path) -> dict[str, Any]:
    packed, rows = job["mode"] == "packed", len(job["batches"][0])
    per_device = {"documented": 1, "packed": 1}.get(job["mode"], job["per_device"])
    return {
        "model_name_or_path": job["model"],
        "adapter_name_or_path": job["adapter"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": ",".join(job["targets"]),
        "lora_rank": job["lora"]["r"],
        "lora_alpha": int(job["lora"]["alpha"]),
        "dataset": "rows",
        "dataset_dir": str(data),
        "template": "llava",
        "cutoff_len": job["cutoff"],
        "neat_packing": packed,
        "preprocessing_num_workers": 1,
        "overwrite_cache": True,
        "disable_gradient_checkpointing": job["mode"] != "documented",
        "disable_shuffling": True,
        "output_dir": job["out"],
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rows // job["packed_rows"] if packed else rows // per_device,
        "max_steps": len(job["batches"]),
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def show(asked: dict[str, Any], path: str, count: int) -> None:
    """The first rows as the trainer tokenises them, to compare."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(asked)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    held = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    rows = [held[at] for at in range(count)]
    names = ("input_ids", "attention_mask", "labels")
    Path(path).write_text(json.dumps({name: [row[name] for row in rows] for name in names}))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(given["threads"])
    from llamafactory.train.tuner import run_exp

    folder = Path(given["out"]).with_suffix(".data")
    write_data(given, folder)
    if given.get("show"):
        show(settings(given, folder), given["show"], given["per_device"])
    else:
        run_exp(settings(given, folder), callbacks=[Marks(given["log"])])
