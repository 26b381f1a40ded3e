"""`train.compile`: the parts of a layer that do not care how trees lie, compiled by torch.

Knows: that norms and MLPs see a row of tokens of any length, and what a compiler is needed for. Whole layers would be
compiled again for every number of trees. Measured on a CPU (language model 256 wide, 6 layers, LoRA, six packs of
500-1,500 tokens, one thread): 1.75 s of CPU time against 1.97, after 3 s of compiling; whole layers 1.61 s after 27 s.
Does not know: when that pays.
"""

from __future__ import annotations

import os
import shutil

from workbench.errors import TrainingError
from workbench.model.llava import Llava

COMPILERS = ("g++", "clang++", "c++")


def compile_layers(llava: Llava) -> None:
    """Compile the language model's norms and MLPs, in place. Raises `TrainingError` on a CPU without a C++ compiler."""
    named = os.environ.get("CXX")
    if llava.device.type == "cpu" and not any(map(shutil.which, [named] if named else COMPILERS)):
        fix = "install g++, or set train.compile: false"
        raise TrainingError("train.compile", found="no C++ compiler", expected=" or ".join(COMPILERS), fix=fix)
    for layer in llava.model.model.language_model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(dynamic=True)
