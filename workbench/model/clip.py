"""A whole CLIP: pictures and texts as vectors of one space.

Knows: how its folder is loaded, how pictures and texts are prepared for it, and a name that no other model has.
Does not know: datasets, or what the vectors are compared for (`curation/search.py`); SigLIP, whose texts are prepared
in another way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerBase

from workbench.errors import ModelError
from workbench.model.hf_folder import mode_of
from workbench.model.images import ImageMode
from workbench.model.parts import image_settings, load_exactly, read_config
from workbench.model.precision import pick_device
from workbench.model.proof import sha256, weight_hashes
from workbench.model.sources import resolve
from workbench.model.tokenizers import load_tokenizer

BATCH = 64
"""Pictures or texts that go through the model at once."""


class Clip:
    """The CLIP of a source (`tiny`, a folder, a name on the Hub), in float32.

    Raises `ModelError` for a model without a text half, and for a tokenizer that does not fit it.
    """

    def __init__(self, source: str | Path = "tiny", *, device: str = "auto") -> None:
        folder = resolve(source, part="vision")
        config = read_config(folder)
        if config.model_type != "clip":
            found, expected = f"a {config.model_type} model", "a CLIP with its text half"
            raise ModelError(str(folder), found=found, expected=expected, fix="name such a model, or tiny")
        self._tokenizer = _tokenizer(folder, config.text_config.vocab_size)
        self.longest = config.text_config.max_position_embeddings
        """Tokens of a text that are read, BOS and EOS included."""
        self.width = config.projection_dim
        """D, the numbers of a vector."""
        settings = image_settings(folder, config.vision_config)
        self._mode = ImageMode(mode_of(settings), settings)
        whole = load_exactly(CLIPModel, folder, dtype=torch.float32).requires_grad_(False).eval()
        self._model = whole.to(pick_device(device))
        facts = [sha256(folder / "config.json"), weight_hashes(folder), self._mode.processor_settings()]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.name = f"clip-{re.sub(r'[^A-Za-z0-9.]+', '-', Path(source).name)[:60]}-{digest[:16]}"
        """For `measures.vectors`: other weights or image settings give another name."""

    def __repr__(self) -> str:
        return f"Clip({self.name!r})"

    def embed_images(self, pictures: Sequence[Image]) -> np.ndarray:
        """(B, D) float32 unit vectors of B pictures."""
        return self._embed(pictures, self._image_features)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(B, D) float32 unit vectors of B texts; of one that has more than `longest` tokens, the beginning is read."""
        return self._embed(texts, self._text_features)

    def _image_features(self, pictures: Sequence[Image]) -> torch.Tensor:
        pixels = torch.stack([self._mode.pixels(picture) for picture in pictures])  # (b, 3, H, W)
        return self._model.get_image_features(pixel_values=pixels.to(self._model.device)).pooler_output

    def _text_features(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self._model.device)
        features = self._model.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return features.pooler_output

    @torch.inference_mode()
    def _embed(self, items: Sequence[Any], features: Callable[[Sequence[Any]], torch.Tensor]) -> np.ndarray:
        """(B, D) unit vectors, `BATCH` items at a time."""
        made = [torch.zeros(0, self.width)]
        for start in range(0, len(items), BATCH):
            made.append(functional.normalize(features(items[start : start + BATCH]), dim=-1).cpu())
        return torch.cat(made).numpy()


def _tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, if texts of several lengths can be made with it that the model can read."""
    tokenizer = load_tokenizer(folder)
    found = expected = ""
    if len(tokenizer) > vocabulary:
        found, expected = f"a tokenizer of {len(tokenizer)} tokens", f"at most {vocabulary}, as the text half has"
    elif tokenizer.pad_token_id is None:
        found, expected = "a tokenizer without a padding token", "pad_token in tokenizer_config.json"
    elif tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:  # every text would be read at its first token
        found, expected = "a tokenizer that adds no EOS", "one that does: CLIP reads a text where its EOS stands"
    if found:
        raise ModelError(str(folder), found=found, expected=expected, fix="use the tokenizer the model was made with")
    return tokenizer
