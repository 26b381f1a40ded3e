"""Which image patches each token of an answer drew on: attention, gradient-weighted relevance, occlusion.

Knows: the passes over the model and the arithmetic. A map is (images, rows, columns) over the patches of the square that
the tower sees.
Does not know: pictures' files, where a patch lies in the original picture (`placed`'s caller), colours, notebooks.

Relevance: of every layer the attention times its gradient with respect to the log probability of the token, negative
parts left out, mean over heads, and relevance carried through the layers, R <- R + A R (Chefer, Gur and Wolf 2021,
"Generic Attention-model Explainability", equations 5 and 6). Attention: the mean over heads and layers of what the
position that predicts the token looks at.

Both have hot spots that are there whatever is asked. So each map is given relative to a reference: the same answer's
position after a neutral question about the same image. `relative` is what the map has more than the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from workbench.conversation import Conversation, Image, Message
from workbench.errors import ModelError
from workbench.inference.decoding import evaluating
from workbench.inference.whole_pass import Layout, lay_out
from workbench.model.llava import Llava
from workbench.model.pieces import pieces

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

METHODS = ("relevance", "attention", "occlusion")
