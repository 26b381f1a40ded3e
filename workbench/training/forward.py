"""One forward pass: the loss of a pack, with the head on supervised rows only.

Knows: how images enter the language model, and which of its rows are worth a look at the vocabulary.
Does not know: optimisers, steps, where images come from. Nothing here depends on how conversations were packed.
"""

from __future__ import annotations

import torch

from workbench.model.llava import Llava
from workbench.training import attention, last_layer
from workbench.training.batch import Batch
from workbench.training.head import row_losses


def token_losses(llava: Llava, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
    """(K,) float32: the cross-entropy of every supervised token. `images` as in `hidden_rows`."""
    with llava.autocast():
        return row_losses(llava.model.lm_head, hidden_rows(llava, batch, images), batch.targets)


def logits(llava: Llava, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
    """(K, vocabulary): what the model expects at every supervised token. `images` as in `hidden_rows`."""
    return llava.model.lm_head(hidden_rows(llava, batch, images))


def hidden_rows(llava: Llava, batch: Batch, images: torch.Tensor | None) -> torch.Tensor:
    """(K, D): the last hidden state in every place that predicts a supervised token.

    `images`: the tiles of the batch's images, in order: (n, N, D) tower features, gathered; or (n, 3, H, W) pixels of
    the squares, which then go through the tower with gradients; None where the batch has no image.
    """
    attention.use(llava)
    pruned = last_layer.prunes(llava, len(batch.rows), batch.input_ids.shape[1])
    inputs = None
    if images is not None:
        features = llava.gather(llava.tower_features(images), batch.sizes) if images.ndim == 4 else images
        inputs = llava.image_inputs(llava.arrange(llava.project(features), batch.places))
    hidden = llava.model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.input_ids.new_empty(1, 1, 1, 0),  # four axes: taken as it is; no mask is made of it
        trees=batch.trees,
        **({"rows": batch.rows, "sees": batch.sees} if pruned else {}),
        mm_encoder_outputs=inputs,
        use_cache=False,
    ).last_hidden_state  # (1, T, D), or pruned (1, K, D)
    return hidden[0] if pruned else hidden[0].index_select(0, batch.rows)
