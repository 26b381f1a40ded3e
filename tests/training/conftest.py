"""A random tiny LLaVA and a dataset of a few small pictures, each with several questions."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 210), "grey": (128, 128, 128)}


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """`start(function, *args, **kwargs)`: a process of its own, which can be killed without mercy.

    One server imports torch for all of them. A plain fork would inherit the locks of threads that are gone.
    """
    context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        context.set_forkserver_preload(["workbench.training.trainer", "transformers.models.llava.modeling_llava"])

    def made(function: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        process = context.Process(target=function, args=args, kwargs=kwargs)
        process.start()
        return process

    return made


RANK = """
import os
os.environ.update(RANK="{rank}", LOCAL_RANK="{rank}", WORLD_SIZE="{world}", LOCAL_WORLD_SIZE="{world}",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}", ACCELERATE_USE_CPU="true")
os.chdir({folder!r})
import torch
torch.set_num_threads(1)
from workbench.recipe import Recipe
from workbench.training.trainer import Loop, train
{before}
train(Recipe.load({recipe!r}), out={out!r}, resume={resume}, progress=False)
"""
"""What `accelerate launch --cpu --num_processes N` does in each of its processes."""


@pytest.fixture
def start_ranks(start: Callable[..., Any], tmp_path: Path) -> Callable[..., list[Any]]:
    """`start_ranks(recipe, out, world=2, before={1: "code"}, folders={1: path}, resume=False)`: running processes.

    `before`: what a rank does first; `folders`: where it works, if not where the test does.
    """

    def made(
        recipe: Any, out: Path, *, world: int = 2, before: Any = None, folders: Any = None, resume: bool = False
    ) -> list[Any]:
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(world):
            script = tmp_path / f"{out.name}-{rank}.py"
            first, folder = (before or {}).get(rank, ""), str((folders or {}).get(rank, tmp_path))
            fields = {"rank": rank, "world": world, "port": port, "before": first, "folder": folder, "resume": resume}
            script.write_text(RANK.format(recipe=str(tmp_path / "recipe.yaml"), out=str(out), **fields))
            processes.append(start(runpy.run_path, str(script)))
        return processes

    return made


@pytest.fixture
def own_mounts() -> list[str]:
    """The words before a command that let it mount a small disk which nobody else sees."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        probe = subprocess.run([*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    except OSError:
        pytest.skip("needs Linux")
    if probe.returncode:
        pytest.skip("needs user namespaces")
    return words


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with random weights: `clip`, a tower of 3 x 3 patches, and `llama`, two layers with a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("parts")
    special = ["<s>", "</s>", "<pad>", "<image>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.save_pretrained(root / "llama")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**small, image_size=24, patch_size=8, num_hidden_layers=2))
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    words = LlamaConfig(**(small | {"hidden_size": 64}), num_hidden_layers=2, vocab_size=len(names), **ends)
    language = LlamaForCausalLM(words)
    for model, name in ((tower, "clip"), (language, "llama")):
        for parameter in model.parameters():  # larger than the usual start, so that every path shows in the loss
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(root / name)
    return {name: root / name for name in ("clip", "llama")}


@pytest.fixture(scope="session")
def onevision_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Overrides of a recipe: a SigLIP of 3 x 3 patches, and a Qwen2 of two layers with ChatML's tokens and no BOS."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

    from tests.model.conftest import byte_tokenizer

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("onevision")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    tokenizer = byte_tokenizer(image=False)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(root / "qwen2")
    shape = small | {"hidden_size": 64, "num_key_value_heads": 2}
    words = Qwen2Config(**shape, vocab_size=len(tokenizer), tie_word_embeddings=True)
    models = {
        "siglip": SiglipVisionModel(SiglipVisionConfig(**small, image_size=24, patch_size=8)),
        "qwen2": Qwen2ForCausalLM(words),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # larger than the usual start, so that every path shows in the loss
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(root / name)
    return f"model.vision={root / 'siglip'}", f"model.language={root / 'qwen2'}"


@pytest.fixture(scope="session")
def video_parts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Override of a recipe: a CLIP of 4 x 4 patches, which can be pooled two by two."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**small, image_size=24, patch_size=6))
    for parameter in tower.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("video") / "clip"
    tower.save_pretrained(folder)
    return f"model.vision={folder}"


@pytest.fixture
def make_recipe(parts: dict[str, Path]) -> Callable[..., Any]:
    """`make_recipe(dataset, "model.load=4bit", ...)`: a small fine-tuning recipe with dotted overrides."""
    from workbench.recipe import Recipe

    def made(dataset: Any = "unused", *overrides: str) -> Any:
        path = str(getattr(dataset, "path", dataset))
        fields = {
            "name": "small",
            "model": {"vision": str(parts["clip"]), "language": str(parts["llama"]), "device": "cpu"},
            "data": {"dataset": path},
            "template": "v1",
            "image_mode": "square",
            "train": {
                "stage": "finetune",
                "language": "lora",
                "lora": {"r": 4, "alpha": 8.0},
                "lr": 1e-3,
                "batch_size": 6,
                "threads": 1,
                "max_steps": 4,
            },
        }
        return Recipe.from_dict(fields).with_overrides(*overrides)

    return made


@pytest.fixture
def make_llava() -> Callable[..., Any]:
    """`make_llava(recipe)`: the model a recipe begins with, not yet prepared for a stage."""
    from workbench.model.llava import build

    def made(recipe: Any) -> Any:
        return build(recipe.model, template=recipe.template, image_mode=recipe.image_mode, seed=recipe.train.seed)

    return made


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Any]:
    """`make_dataset(images=6, each=3)`: a dataset of so many pictures and conversations about each, and one without."""
    import PIL.Image
    import polars as pl

    from workbench.conversation import Conversation, Image, Message
    from workbench.data.dataset import Dataset
    from workbench.data.tables import IMAGE_COLUMNS

    def made(
        images: int = 6, each: int = 3, *, split: bool = False, task: str = "conversation", name: str = "data"
    ) -> Any:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        rows, conversations = [], []
        for number in range(images):
            colour = list(COLOURS)[number % len(COLOURS)]
            picture = PIL.Image.new("RGB", (30 + number, 24), COLOURS[colour])
            picture.putpixel((number, 3), (255, 255, 255))
            picture.save(folder / "images" / f"{number}.png")
            part = "val" if split and number == images - 1 else "train" if split else None
            rows.append({"id": f"i{number}", "root": "images", "path": f"{number}.png", "split": part, "status": "ok"})
            image = Image(f"{number}.png")
            for turn in range(each):
                marks = "!" * turn
                asked = (Message("user", (image, "Which colour?" + marks)), Message("assistant", (colour + marks,)))
                more = (Message("user", ("Sure?",)), Message("assistant", (f"Yes, {number}.",))) if turn % 2 else ()
                conversations.append(Conversation(f"c{number}.{turn}", asked + more, task=task))
        text = (Message("user", ("What is 1+1?",)), Message("assistant", ("Two.",)))
        conversations.append(Conversation("text", text, task=task, split="train" if split else None))
        frame = pl.DataFrame(rows, schema={name: IMAGE_COLUMNS[name] for name in rows[0]})
        return Dataset.create(folder, name="small", images=frame, conversations=conversations)

    return made


@pytest.fixture
def off_zero() -> Callable[..., None]:
    """`off_zero(llava)`: adapters moved off zero, so that gradients reach all of them."""
    import torch

    def moved(llava: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in llava.model.named_parameters():
            if ".lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    return moved


@pytest.fixture(scope="module")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A state folder for the tests of one module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()
