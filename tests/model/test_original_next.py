"""LLaVA-NeXT in LLaVA's own layouts: its tiles and tokens are those of LLaVA's code; there and back is bit-equal."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    LlavaNextForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.model.test_original import (
    KINDS,
    TOKENIZER,
    WITHIN,
    Published,
    assert_refused,
    assert_unread,
    equal,
    lora_folder,
    sentencepiece_size,
)
from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message, to_chat
from workbench.errors import CheckpointError, ModelError
from workbench.inference.opening import open_model
from workbench.model.anyres import AnyRes, from_llava
from workbench.model.checkpoint import read_projector, save
from workbench.model.export import export_hf, export_original
from workbench.model.llava import NEWLINE, Llava, load
from workbench.model.lora import merge_into
from workbench.model.original import read_weights
from workbench.model.original_in import load_original
from workbench.model.stages import prepare
from workbench.model.tokenizers import load_tokenizer

SIDE, PATCH = 48, 12
GRIDS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
"""LLaVA-1.6's grids as its `config.json` has them, (width, height), of tiles `SIDE` pixels wide."""
SIZES = [(80, 40), (40, 80), (60, 60), (200, 20), (18, 200), (48, 48), (140, 66)]
ASKED = Conversation("asked", (Message("user", (Image("a.png"), "What is this?")),))
SPECIFIC = {"llava_qwen": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False, "rope_theta": 1000000.0,
                                                          "vocab_size": sentencepiece_size() + 64})}  # fmt: skip
Made = Callable[..., "PublishedNext"]


def best_grid(size: tuple[int, int], grids: list[list[int]] = GRIDS) -> tuple[int, int]:
    """(width, height) in pixels of the grid that LLaVA gives a picture of (width, height): worked out by ranking."""

    def rank(index: int) -> tuple[int, int, int]:
        wide, high = grids[index]
        scale = min(wide / size[0], high / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - wide * high, -index

    wide, high = grids[max(range(len(grids)), key=rank)]
    return wide, high


def kept(size: tuple[int, int], grid: tuple[int, int], patch: int) -> tuple[slice, slice]:
    """The rows and columns of a grid's tokens that LLaVA keeps: without those of the black borders."""
    columns, rows = grid[0] // patch, grid[1] // patch
    if size[0] / size[1] > columns / rows:
        border = (rows - int(size[1] * (columns / size[0]))) // 2
        return slice(border, rows - border), slice(0, columns)
    border = (columns - int(size[0] * (rows / size[1]))) // 2
    return slice(0, rows), slice(border, columns - border)


def tokens_of(size: tuple[int, int], grids: list[list[int]], side: int = SIDE, patch: int = PATCH) -> int:
    """Tokens of a picture in LLaVA."""
    rows, columns = (range(100)[part] for part in kept(size, best_grid(size, grids), patch))
    return (side // patch) ** 2 + len(rows) * (len(columns) + 1)


def with_tokens(tokens: list[str]) -> Any:
    """A Llama's tokenizer with some tokens more."""
    tokenizer = load_tokenizer(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return tokenizer


class PublishedNext(Published):
    """A small LLaVA-NeXT as its authors' code holds and saves it: tower and newline in the checkpoint's own file."""

    grids = GRIDS

    def __init__(self, *given: Any, **fields: Any) -> None:
        super().__init__(*given, **fields)
        self.newline = torch.randn(64).to(self.dtype)
        self.sight = self.load_sight()
        for parameter in self.sight.parameters():
            parameter.data += 0.01  # it was trained
        self.config |= {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": GRIDS,
            "mm_patch_merge_type": "spatial_unpad",
            "unfreeze_mm_vision_tower": True,
            "mm_vision_tower_lr": 2e-06,
            "mm_resampler_type": None,
            "image_crop_resolution": 224,
            "tokenizer_model_max_length": 4096,
        }

    def load_sight(self) -> Any:
        return CLIPVisionModel.from_pretrained(self.tower, dtype=self.dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(tiles, 16, 32): what its code takes of the tower."""
        return self.sight(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def shrunk(self, whole: torch.Tensor) -> torch.Tensor:
        """(rows, columns, 64) of a grid, borders aside: what its code leaves of them."""
        return whole

    def normal(self, llava: Llava, tiles: list[PIL.Image.Image]) -> torch.Tensor:
        mean, std = (np.array(llava.spec["image_settings"][key], np.float32) for key in ("image_mean", "image_std"))
        pixels = np.stack([(np.asarray(tile, np.float32) / 255 - mean) / std for tile in tiles]).transpose(0, 3, 1, 2)
        return torch.from_numpy(pixels).to(self.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        seen = {f"model.vision_tower.vision_tower.{name}" if name.startswith("vision_model.") else
                f"model.vision_tower.vision_tower.vision_model.{name}": tensor
                for name, tensor in self.sight.state_dict().items() if not name.endswith("position_ids")}  # fmt: skip
        return super().tensors() | {"model.image_newline": self.newline} | seen

    def describe(self, **changed: Any) -> Path:
        folder = super().describe(**changed)
        if type(self.language) is Qwen2ForCausalLM:
            (folder / "tokenizer.model").unlink()
            with_tokens(["<|im_start|>", "<|im_end|>"]).save_pretrained(folder)
        return folder

    @torch.no_grad()
    def rows(self, llava: Llava, picture: PIL.Image.Image) -> torch.Tensor:
        """What LLaVA's own code puts in a picture's place: the squashed whole, then rows that end in newlines."""
        grid = best_grid(picture.size, self.grids)
        scale = (grid[0] / picture.width, grid[1] / picture.height)
        wide, high = (min(math.ceil(edge * min(scale)), most) for edge, most in zip(picture.size, grid, strict=True))
        wide, high = (grid[0], high) if scale[0] < scale[1] else (wide, grid[1])
        canvas = PIL.Image.new("RGB", grid)
        canvas.paste(picture.resize((wide, high)), ((grid[0] - wide) // 2, (grid[1] - high) // 2))
        tiles = [picture.resize((SIDE, SIDE))]
        corners = [(x, y) for y in range(0, grid[1], SIDE) for x in range(0, grid[0], SIDE)]
        tiles += [canvas.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]
        seen = self.projector(self.features(self.normal(llava, tiles)))  # (tiles, 16, 64)
        down, across = kept(picture.size, grid, PATCH)
        edge = SIDE // PATCH
        whole = seen[1:].view(grid[1] // SIDE, grid[0] // SIDE, edge, edge, -1).permute(0, 2, 1, 3, 4)
        whole = whole.reshape(grid[1] // PATCH, grid[0] // PATCH, -1)[down, across]
        ended = [torch.cat([row, self.newline[None]]) for row in self.shrunk(whole)]
        return torch.cat([seen[0], *ended])


@torch.no_grad()
def logits(llava: Llava, rows: torch.Tensor, language: Any) -> torch.Tensor:
    """A language model's last logits for `ASKED` with these rows in the picture's place."""
    ids = llava.renderer.prompt(ASKED).ids
    at = ids.index(-200)
    embed = language.get_input_embeddings()
    before, after = (embed(torch.tensor(part, dtype=torch.long)) for part in (ids[:at], ids[at + 1 :]))
    found: torch.Tensor = language(inputs_embeds=torch.cat([before, rows.to(before), after])[None]).logits[0, -1]
    return found.float()


@torch.no_grad()
def ours(llava: Llava, picture: PIL.Image.Image) -> torch.Tensor:
    rows = llava.look([llava.show(picture)])
    ids, _ = llava.renderer.expand(llava.renderer.prompt(ASKED), [len(rows[0])], llava.image_token_id)
    found: torch.Tensor = llava.model(input_ids=torch.tensor([ids]), mm_encoder_outputs=llava.image_inputs(rows)).logits
    return found[0, -1].float()


def picture(size: tuple[int, int]) -> PIL.Image.Image:
    values = np.random.default_rng(size).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


@pytest.fixture
def published(parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """`published(kind=..., dtype=...)`: a small LLaVA-NeXT of its authors' making, not yet saved."""
    monkeypatch.setattr("tests.model.test_original.KINDS", KINDS | SPECIFIC)

    def made(name: str = "source", **fields: Any) -> PublishedNext:
        return PublishedNext(tmp_path / name, parts["clip"], **fields)

    return made


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("bin", {"dtype": torch.float32}),
        ("safetensors", {"kind": "llava_mistral"}),
        ("shards", {"kind": "llava_qwen", "dtype": torch.bfloat16}),
    ],
    ids=["bin-vicuna-fp32", "safetensors-mistral-fp16", "shards-qwen-bf16"],
)
def test_pictures_of_any_size_get_the_tokens_and_logits_of_llavas_own_code(
    form: str, fields: dict[str, Any], published: Made, tmp_path: Path
) -> None:
    source = published(**fields)
    folder = source.save(form)
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert type(llava.model) is LlavaNextForConditionalGeneration and llava.image_mode.mode == "anyres"
    assert llava.held == source.dtype and torch.equal(llava.newline, source.newline)
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    vanilla, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    words = source.config["vocab_size"]
    for size in SIZES:
        rows = source.rows(llava, picture(size))
        expected = logits(llava, rows, source.language)
        within = WITHIN[source.dtype] * float(expected.abs().max())
        assert len(rows) == llava.tiling.tokens(size) == tokens_of(size, GRIDS)
        torch.testing.assert_close(ours(llava, picture(size))[:words], expected, rtol=0, atol=within)
        text = processor.apply_chat_template(to_chat(ASKED), add_generation_prompt=True)
        inputs = processor(text=text, images=picture(size), return_tensors="pt")
        assert int((inputs["input_ids"] == llava.image_token_id).sum()) == len(rows)
        inputs["pixel_values"] = inputs["pixel_values"].to(source.dtype)
        with torch.no_grad():
            found = vanilla(**inputs).logits[0, -1].float()
        torch.testing.assert_close(found[:words], expected, rtol=0, atol=within)


def test_the_order_of_the_grids_is_kept_so_that_every_count_is_the_sources(published: Made, tmp_path: Path) -> None:
    source = published()
    folder = source.save()
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    told = json.loads((out / "config.json").read_text())["image_grid_pinpoints"]
    assert told == [[96, 48], [48, 96], [96, 96], [48, 144], [144, 48]], "(height, width), in the same order"
    tiling = load(out, device="cpu").tiling
    sizes = [(wide, high) for wide in range(1, 200, 5) for high in range(1, 200, 5)]
    assert [tiling.tokens(size) for size in sizes] == [tokens_of(size, GRIDS) for size in sizes]
    turned = [tokens_of(size, [grid[::-1] for grid in GRIDS]) for size in sizes]
    assert turned != [tiling.tokens(size) for size in sizes], "the order matters"


def test_at_full_size_only_a_border_of_whole_tokens_may_count_otherwise() -> None:
    """LLaVA's division of 55 x (24 / 88) falls a hair short of 15; transformers rounds first, and so do we."""
    grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    tiling = AnyRes(336, 24, tuple((high, wide) for high, wide in from_llava(grids)))
    draw = random.Random(5)
    sizes = {(draw.randint(1, 1344), draw.randint(1, 1344)) for _ in range(4000)} | {(88, 55), (176, 198), (987, 376)}
    other = {size for size in sizes if tiling.tokens(size) != tokens_of(size, grids, 336, 14)}
    assert other == {(88, 55), (176, 198), (987, 376)}


@pytest.mark.parametrize("fields", [{}, {"kind": "llava_qwen", "dtype": torch.bfloat16}], ids=["vicuna", "qwen"])
@pytest.mark.parametrize("grids", [GRIDS, str([tuple(grid) for grid in GRIDS])], ids=["list", "text"])
def test_there_and_back_is_bit_equal(fields: dict[str, Any], grids: Any, published: Made, tmp_path: Path) -> None:
    source = published(**fields)
    source.config["image_grid_pinpoints"] = grids
    folder = source.save("shards")
    first = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    back = export_original(first, tmp_path / "back", device="cpu")
    expected = {name: each for name, each in source.tensors().items() if not name.endswith("inv_freq")}
    equal(read_weights(back), expected)
    assert json.loads((back / "config.json").read_text()) == source.config
    again = export_hf(back, tmp_path / "again", vision_tower=source.tower, device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(again / "model.safetensors"))
    assert (first / "config.json").read_text() == (again / "config.json").read_text()


def test_a_next_of_transformers_goes_there_and_back(make: Any, tmp_path: Path) -> None:
    from workbench.model.export import write_folder

    first = write_folder(make(image_mode="anyres"), tmp_path / "hf")
    there = export_original(first, tmp_path / "there", device="cpu")
    config = json.loads((there / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    assert config["image_grid_pinpoints"] == GRIDS
    told = json.loads((there / "vision_tower" / "preprocessor_config.json").read_text())
    assert told["size"] == {"shortest_edge": 48} and told["crop_size"] == {"height": 48, "width": 48}
    assert told["image_processor_type"] == "CLIPImageProcessor" and "image_grid_pinpoints" not in told
    back = export_hf(there, tmp_path / "back", device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(back / "model.safetensors"))
    one, two = load(first, device="cpu"), load(back, device="cpu")
    for size in SIZES:
        assert one.tiling.tokens(size) == two.tiling.tokens(size)
        assert torch.equal(one.show(picture(size)).tiles, two.show(picture(size)).tiles)
    square = export_original(write_folder(make(), tmp_path / "plain"), tmp_path / "square", device="cpu")
    assert json.loads((square / "config.json").read_text())["mm_patch_merge_type"] == "flat"


def test_it_is_opened_like_any_other_model(published: Made) -> None:
    source = published()
    source.config["mm_vision_tower"] = str(source.tower)
    model = open_model(source.save(), device="cpu", open_image=lambda image: picture((140, 66)))
    usage = model.reply(ASKED, SamplingOptions(max_tokens=2)).usage
    assert usage is not None and usage.prompt_tokens > tokens_of((140, 66), GRIDS)


# --- LoRA and projectors ----------------------------------------------------------------------------------------


def test_a_lora_folder_is_merged_onto_its_base_with_its_newline(published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    source.sight = CLIPVisionModel.from_pretrained(source.tower)  # it stays as it was published
    folder, trained = lora_folder(source, source.base(tmp_path / "base"), unfreeze_mm_vision_tower=False)
    with pytest.raises(CheckpointError, match=r"1 missing tensors, the first: model.image_newline"):
        load_original(folder, vision_tower=source.tower, device="cpu")
    trainables = torch.load(folder / "non_lora_trainables.bin")
    torch.save(
        trainables | {"base_model.model.model.image_newline": source.newline}, folder / "non_lora_trainables.bin"
    )
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    expected = logits(llava, source.rows(llava, picture((140, 66))), trained)
    torch.testing.assert_close(ours(llava, picture((140, 66)))[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    merged = ours(merge_into(llava), picture((140, 66)))
    torch.testing.assert_close(merged[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_what_was_trained_here_leaves_in_llavas_layouts(
    make: Any, finetune: Any, train_a_little: Any, parts: Any, tmp_path: Path
) -> None:
    llava = make(image_mode="anyres")
    start = llava.newline.clone()
    prepare(llava, finetune(), say=lambda text: None)
    train_a_little(llava)
    assert not torch.equal(llava.newline, start)
    saved, expected = save(llava, tmp_path / "saved"), ours(llava, picture((140, 66)))
    whole = export_original(saved, tmp_path / "whole", device="cpu")
    torch.testing.assert_close(ours(load_original(whole), picture((140, 66))), expected, rtol=1e-4, atol=1e-4)
    light = export_original(saved, tmp_path / "light", weights="adapter", device="cpu")
    again = load_original(light, base=parts["llama"])
    torch.testing.assert_close(ours(again, picture((140, 66))), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.newline, llava.newline) and again.tiling == llava.tiling


def test_a_bare_projector_brings_its_newline_or_is_one_of_stage_1(make: Any, parts: Any, tmp_path: Path) -> None:
    llava = make(image_mode="anyres")
    folder = export_original(save(llava, tmp_path / "saved"), tmp_path / "bare", weights="projector", device="cpu")
    kind, tensors = read_projector(folder)
    assert kind == "mlp2x_gelu" and torch.equal(tensors[NEWLINE], llava.newline)
    again = load_original(folder, base=parts["llama"])
    assert torch.equal(again.newline, llava.newline)
    held = torch.load(folder / "mm_projector.bin")
    torch.save({name: each for name, each in held.items() if "newline" not in name}, folder / "mm_projector.bin")
    assert NEWLINE not in read_projector(folder)[1]
    with pytest.raises(CheckpointError, match=r"1 missing tensors, the first: model.image_newline"):
        load_original(folder, base=parts["llama"])
    second = make(image_mode="anyres", projector_from=str(folder), seed=3)
    assert torch.equal(second.projector.linear_1.weight, llava.projector.linear_1.weight)


# --- what is refused --------------------------------------------------------------------------------------------

LINE = "model.image_newline"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no newline": ({LINE: None}, "1 missing tensors, the first: model.image_newline"),
    "a newline of another width": ({LINE: torch.ones(63)}, "1 misshapen tensors, .* is .63,., not .64,."),
    "two newlines": ({"model.image_newlines": torch.ones(64)}, "1 surplus tensors, the first: model.image_newlines"),
    "a tower with a tensor too few": (
        {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": None},
        "the first: model.vision_tower.vision_tower.vision_model.post_layernorm.bias",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused(name: str, published: Made, tmp_path: Path) -> None:
    assert_refused(published(), *WRONG[name], tmp_path / "out")


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "tiles without newlines": ({"mm_patch_merge_type": "flat"}, "anyres and mm_patch_merge_type flat; expected anyres"),
    "newlines without tiles": ({"image_aspect_ratio": "pad"}, "pad and mm_patch_merge_type spatial_unpad; expected"),
    "tiles of no number": ({"image_aspect_ratio": "anyres_max_"}, "image_aspect_ratio anyres_max_ and mm_patch_merge"),
    "another's pooling": ({"mm_resampler_type": "perceiver"}, "mm_resampler_type perceiver"),
    "no grids": ({"image_grid_pinpoints": None}, "image_grid_pinpoints None; expected a list of .width, height."),
    "a broken range": ({"image_grid_pinpoints": "1x1,...,6x6"}, "image_grid_pinpoints 1x1,...,6x6; expected a list"),
    "halves of pixels": ({"image_grid_pinpoints": [[48.5, 48]]}, r"image_grid_pinpoints \[\[48.5, 48\]\]"),
    "halves of tiles": (
        {"image_grid_pinpoints": [[48, 72]]},
        r"source: image_grid_pinpoints: found \[48, 72\]; expected multiples of 48",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tiles_that_are_put_together_in_another_way_say_so(name: str, published: Made) -> None:
    assert_unread(published(), *OTHERS[name])


def test_an_image_mode_that_the_model_was_not_made_for_is_refused(published: Made) -> None:
    source = published()
    folder = source.save()
    with pytest.raises(ModelError, match="'pad' for a LLaVA NeXT; expected anyres"):
        load_original(folder, vision_tower=source.tower, image_mode="pad")
    source.describe(image_aspect_ratio="pad", mm_patch_merge_type="flat")
    with pytest.raises(ModelError, match="'anyres' for a LLaVA 1.5; expected square, pad or crop"):
        load_original(folder, vision_tower=source.tower, image_mode="anyres")


@pytest.mark.parametrize(
    ("mark", "template"), [(None, "v1"), ("<|im_start|>", "chatml"), ("<|start_header_id|>", "llama_3")]
)
def test_a_llamas_template_is_told_by_its_tokenizer(
    mark: str | None, template: str, published: Made, tmp_path: Path
) -> None:
    source = published()
    folder = source.save()
    if mark:
        with_tokens([mark, "<|im_end|>", "<|end_header_id|>", "<|eot_id|>"]).save_pretrained(folder)
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert llava.renderer.template.name == template
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    (out / "template.yaml").unlink()  # as others publish such a model
    assert load(out, device="cpu").renderer.template.name == template
