"""A random LLaVA that answers: its last layer is fitted so that it says what is right in two questions of three.

Knows: the states behind which an answer and the end of it are said. Does not know: who asks it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import workbench as wb
from peers.material import Shape, make_model
from workbench.conversation import Conversation
from workbench.evaluation.task import Evaluation

SURE = 5.0
"""Logit of the answer; of any other word about 0."""
SMALLEST = 1e-4
"""Of the directions in which states differ, the least that is used, to the greatest: below it is rounding."""


def make_fitted(folder: Path, asked: Iterable[Evaluation]) -> int:
    """Write the model (59 million parameters, 576 image tokens) as `workbench export --as hf` does; its parameters."""
    rows = [(one, evaluation.resolve(one.images[0])) for evaluation in asked for one in evaluation.conversations]
    words = [*(_text(one) for one, _ in rows), *(word for one, _ in rows for word in _candidates(one))]
    raw = folder.with_name("raw")
    count = make_model(raw, Shape(), words)
    wb.export(raw, folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    states, said = [], []
    for number, (one, path) in enumerate({(_text(one), path): (one, path) for one, path in rows}.values()):
        (word,) = processor.tokenizer.encode(_answer(one, number), add_special_tokens=False)
        states.append(_states(model, processor, one, path, word))
        said += [word, processor.tokenizer.eos_token_id]
    wanted = SURE * torch.nn.functional.one_hot(torch.tensor(said), model.lm_head.out_features).double()
    with torch.no_grad():
        model.lm_head.weight.copy_((torch.linalg.pinv(torch.cat(states).double(), rtol=SMALLEST) @ wanted).T)
    model.save_pretrained(folder)
    return count


def _answer(one: Conversation, number: int) -> str:
    """What is right, but of every third question something else."""
    right = one.reference.capitalize()
    others = [word for word in _candidates(one) if word != right]
    return others[number % len(others)] if number % 3 == 2 else right


def _states(model: Any, processor: Any, one: Conversation, path: Path, word: int) -> torch.Tensor:  # (2, C)
    """Behind the question, and behind its answer."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _text(one)}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    with Image.open(path) as picture:
        inputs = processor(images=picture.convert("RGB"), text=text, return_tensors="pt")
    ids = torch.cat([inputs["input_ids"], torch.tensor([[word]])], 1)
    with torch.inference_mode():
        return model.model(input_ids=ids, pixel_values=inputs["pixel_values"]).last_hidden_state[0, -2:]


def _text(one: Conversation) -> str:
    return one.prompt.messages[-1].text


def _candidates(one: Conversation) -> list[str]:
    return one.metadata["candidates"]
