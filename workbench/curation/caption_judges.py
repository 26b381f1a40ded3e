"""What a model thinks of a caption: how surprising its words are, and whether it tells what the picture shows.

Knows: perplexity by any causal language model, matching by a BLIP trained for it, and a name that no other model has.
Does not know: datasets, or which value is a good one; that differs from model to model. data-juicer's perplexity
threshold is for its own KenLM model and means nothing here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch.nn import functional
from transformers import AutoModelForCausalLM, BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from workbench.errors import ModelError
from workbench.model.parts import load_exactly, read_config
from workbench.model.precision import pick_device
from workbench.model.proof import sha256, weight_hashes
from workbench.model.sources import resolve
from workbench.model.tokenizers import load_tokenizer

BATCH = 32
LONGEST = 512
"""Tokens of a text that are read by a language model."""


class Perplexity:
    """A causal language model of a source (`tiny`, a folder, a name on the Hub) as a judge of texts."""

    def __init__(self, source: str | Path = "tiny", *, device: str = "auto") -> None:
        folder = resolve(source, part="language")
        self._model = _load(AutoModelForCausalLM, folder).to(pick_device(device))
        self._tokenizer = load_tokenizer(folder)
        self.name = _name("perplexity", source, folder)

    def __call__(self, texts: Sequence[str]) -> Iterator[float]:
        """Perplexity per token of each text, the first token included where the model has a token for the beginning.

        1 where nothing is surprising; infinite for a text of less than two tokens to go by.
        """
        for start in range(0, len(texts), BATCH):
            yield from self._batch(texts[start : start + BATCH])

    @torch.inference_mode()
    def _batch(self, texts: Sequence[str]) -> list[float]:
        rows = [self._tokens(text) for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self._model.device)  # (B, T)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=ids.device)
        logits = self._model(input_ids=ids, attention_mask=real).logits[:, :-1].float()  # (B, T - 1, vocabulary)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        told = real[:, 1:]  # (B, T - 1)
        mean = (loss.view_as(told) * told).sum(1) / told.sum(1)  # nothing to go by: 0 / 0
        return mean.exp().nan_to_num(float("inf")).tolist()

    def _tokens(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = self._tokenizer.bos_token_id
        return ([] if begin is None else [begin]) + ids[:LONGEST] or [0]


class Matching:
    """A BLIP trained to tell whether a text fits a picture, such as `Salesforce/blip-itm-base-coco`.

    Raises `ModelError` for another kind of model.
    """

    def __init__(self, source: str | Path, *, device: str = "auto") -> None:
        folder = resolve(source)
        config = read_config(folder)
        if config.model_type != "blip":
            expected = "a BLIP for image-text retrieval, such as Salesforce/blip-itm-base-coco"
            raise ModelError(str(folder), found=f"a {config.model_type} model", expected=expected)
        self._model = _load(BlipForImageTextRetrieval, folder).to(pick_device(device))
        self._tokenizer = load_tokenizer(folder)
        self._processor = BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._longest = config.text_config.max_position_embeddings
        self.name = _name("matching", source, folder)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """Probability, 0 to 1, that each text fits the picture in its place."""
        device = self._model.device
        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(device)
        pixels = self._processor(list(pictures), return_tensors="pt")["pixel_values"].to(device)  # (B, 3, H, W)
        found = self._model(
            pixel_values=pixels, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).itm_score  # (B, 2)
        return found.softmax(-1)[:, 1].tolist()


def _load(kind: Any, folder: Path) -> Any:
    read_config(folder)
    return load_exactly(kind, folder, dtype=torch.float32).requires_grad_(False).eval()


def _name(kind: str, source: str | Path, folder: Path) -> str:
    """For `measures.measured_once`: other weights give another name."""
    facts = json.dumps([sha256(folder / "config.json"), weight_hashes(folder)], sort_keys=True)
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", Path(source).name)[:60]
    return f"{kind}-{plain}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
