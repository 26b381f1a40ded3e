"""How well the peak memory of training is foreseen: predicted from configurations, measured in a fresh process.

    python tests/benchmarks/memory_prediction.py [--quick]

Random models of several sizes; on a CUDA device the same with its own count of allocated memory. Prints one line per
case and the largest error.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from workbench.model.outline import outline
from workbench.recipe import Recipe
from workbench.training.dry_run import dry_run
from workbench.training.loading import while_loading
from workbench.training.memory import Foresight
from workbench.training.packing import Entry, Pack, Tree

SIZES = {  # language model: width, layers, vocabulary; tower: patches an edge; tokens of a pack
    "128 wide, 4 layers": (128, 4, 512, 8, 2048),
    "256 wide, 6 layers": (256, 6, 8000, 8, 2048),
    "512 wide, 8 layers": (512, 8, 32_000, 24, 2048),
}
WAYS = {
    "align": ("train.stage=align", "train.language=frozen"),
    "lora": ("train.language=lora",),
    "full": ("train.language=full",),
}
FORMATS = ("fp32", "bf16", "4bit")


def main(quick: bool) -> None:
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        cases = product(SIZES, WAYS, FORMATS, (0, 1))
        for number, (size, way, load, every) in enumerate(cases):
            if (quick and number % 5) or (load == "4bit" and way != "lora"):
                continue
            width, layers, vocabulary, edge, tokens = SIZES[size]
            parts = make_parts(Path(temporary), width, layers, vocabulary, edge)
            recipe = make_recipe(parts, *WAYS[way], f"model.load={load}")
            pack = make_pack(edge * edge, tokens)
            settings = {"template": recipe.template, "image_mode": recipe.image_mode}
            made = outline(recipe.model, **settings)
            loading = while_loading(made.llava)
            foreseen = Foresight(made, recipe.train).peak(pack, every=every)
            measured = dry_run(recipe, pack, every=every)
            error = foreseen.peak / measured.peak - 1
            worst = max(worst, abs(error))
            told = f"{size}, {edge**2:>3} image tokens, {way:<5} {load} checkpointing {'on ' if every else 'off'}"
            numbers = f"{foreseen.peak / 1e6:8.1f} MB foreseen, {measured.peak / 1e6:8.1f} measured  {error:+.1%}"
            beside = f"loading {loading / 1e6:.1f}, {measured.loading / 1e6:.1f} measured"
            print(f"{told}  {numbers}  ({foreseen.phase}, {measured.seconds:.1f} s; {beside})", flush=True)
    print(f"largest error: {worst:.1%}")


def make_parts(root: Path, width: int, layers: int, vocabulary: int, edge: int) -> dict[str, Path]:
    """Folders of a random tower of `edge` x `edge` patches and a random language model with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folders = {"vision": root / f"clip-{edge}", "language": root / f"llama-{width}"}
    if not folders["vision"].is_dir():
        sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
        config = CLIPVisionConfig(**sizes, num_hidden_layers=6, image_size=14 * edge, patch_size=14)
        CLIPVisionModel(config).save_pretrained(folders["vision"])
    if not folders["language"].is_dir():
        sizes = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_attention_heads": width // 32}
        config = LlamaConfig(**sizes, num_hidden_layers=layers, vocab_size=vocabulary)
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(folders["language"])
        names = ["<s>", "</s>", "<unk>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        backend = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=backend, **ends).save_pretrained(folders["language"])
    return folders


def make_recipe(parts: dict[str, Path], *overrides: str) -> Recipe:
    model = {name: str(folder) for name, folder in parts.items()}
    train = {"stage": "finetune", "language": "lora", "lr": 1e-4, "threads": 1, "lora": {"r": 16, "alpha": 32.0}}
    fields = {"name": "random", "model": model, "data": {"dataset": "unused"}, "template": "v1", "train": train}
    return Recipe.from_dict(fields).with_overrides(*overrides)


def make_pack(image_tokens: int, tokens: int, branch: int = 60, each: int = 3, supervised: int = 30) -> Pack:
    """Trees of one image and three conversations, up to so many tokens."""
    prefix = image_tokens + 20
    entry = Entry(0, prefix + branch, prefix, supervised, 1, 1)
    tree = Tree((entry,) * each)
    return [tree] * max(1, tokens // tree.tokens)


if __name__ == "__main__":
    main("--quick" in sys.argv)
