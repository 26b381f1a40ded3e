"""LLaVA-OneVision in LLaVA's own layout: tiles, tokens and logits of its own code; there and back is bit-equal."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlavaOnevisionForConditionalGeneration, SiglipVisionModel

from tests.model.test_original import KINDS, WITHIN, assert_refused, equal, lora_folder
from tests.model.test_original_next import (
    ASKED,
    SPECIFIC,
    PublishedNext,
    best_grid,
    kept,
    logits,
    ours,
    picture,
    tokens_of,
)
from tests.model.test_videos import shown_frames
from workbench.chat_model import SamplingOptions
from workbench.errors import CheckpointError, ModelError
from workbench.inference.opening import open_model
from workbench.model.anyres import ONEVISION_GRIDS, AnyRes, pinpoints_of
from workbench.model.checkpoint import save
from workbench.model.export import export_hf, export_original, write_folder
from workbench.model.llava import Llava, load
from workbench.model.lora import merge_into
from workbench.model.original import read_weights
from workbench.model.original_in import load_original
from workbench.model.original_siglip import PUBLISHED, SO400M, is_published
from workbench.model.stages import prepare

SIDE, LIMIT = 48, 2
TILES = "(1x1),...,(6x6)"
GRIDS = [[across * SIDE, down * SIDE] for across in range(1, 7) for down in range(1, 7)]
"""As its `config.json` has them, (width, height)."""
SIZES = [(70, 40), (31, 90), (48, 48), (200, 21), (300, 280)]
"""Of tiles 48 pixels wide; the last needs more tokens than two of them have."""
TOWER = "model.vision_tower.vision_tower.vision_model."
Made = Callable[..., "PublishedOneVision"]


def shrunk_to(rows: int, columns: int, edge: int, limit: int) -> tuple[int, int]:
    """(rows, columns) that OneVision's code leaves of a grid's tokens."""
    times = math.sqrt(rows * columns / (limit * edge**2))
    return (int(rows // times), int(columns // times)) if times > 1.1 else (rows, columns)


class PublishedOneVision(PublishedNext):
    """A small LLaVA-OneVision as its authors' code holds and saves it; `tied`: its head is its embeddings."""

    grids = GRIDS

    def __init__(self, *given: Any, tied: bool = False, **fields: Any) -> None:
        super().__init__(*given, **({"kind": "llava_qwen_tied" if tied else "llava_qwen"} | fields))
        self.tied = tied
        for key in ("unfreeze_mm_vision_tower", "tune_mm_mlp_adapter", "mm_vision_tower_lr"):
            self.config.pop(key, None)
        self.config |= {
            "model_type": "llava",
            "architectures": ["LlavaQwenForCausalLM"],
            "image_token_index": 151646,
            "image_aspect_ratio": f"anyres_max_{LIMIT}",
            "image_grid_pinpoints": GRIDS,
            "mm_vision_tower": PUBLISHED,
            "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
            "mm_spatial_pool_mode": "bilinear",
            "mm_newline_position": "one_token",
            "tie_word_embeddings": tied,
            "vision_tower_pretrained": None,
            "use_pos_skipping": False,
            "pos_skipping_range": 4096,
        }

    def load_sight(self) -> Any:
        sight: Any = SiglipVisionModel.from_pretrained(self.tower, dtype=self.dtype)
        del sight.encoder.layers[-1:], sight.head
        sight.use_head = False
        return sight

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.sight(pixels, output_hidden_states=True).hidden_states[-1]

    def shrunk(self, whole: torch.Tensor) -> torch.Tensor:
        if self.config["image_aspect_ratio"] == "anyres":
            return whole
        rows, columns = whole.shape[:2]
        size = shrunk_to(rows, columns, 4, LIMIT)
        if size == (rows, columns):
            return whole
        shown = torch.nn.functional.interpolate(whole.permute(2, 0, 1)[None], list(size), mode="bilinear")
        return shown[0].permute(1, 2, 0)

    @torch.no_grad()
    def beside(self, llava: Llava, picture: PIL.Image.Image) -> torch.Tensor:
        """What its training puts in the place of one of several pictures: a padded square and a newline."""
        edge = max(picture.size)
        square = PIL.Image.new("RGB", (edge, edge), (127, 127, 127))
        square.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
        pixels = self.normal(llava, [square.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)])
        return torch.cat([self.projector(self.features(pixels))[0], self.newline[None]])

    @torch.no_grad()
    def frames(self, pixels: torch.Tensor) -> torch.Tensor:
        """(frames x 4 + 1, 64): what its code puts in a video's place: projected, then half as wide and high, then one
        newline."""
        projected = self.projector(self.features(pixels.to(self.dtype)))
        grids = projected.view(-1, 4, 4, projected.shape[-1]).permute(0, 3, 1, 2)
        half = torch.nn.functional.interpolate(grids, size=[2, 2], mode="bilinear")
        return torch.cat([half.flatten(2).transpose(1, 2).flatten(0, 1), self.newline[None]])

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: each for name, each in super().tensors().items() if not (self.tied and name == "lm_head.weight")}


@pytest.fixture
def published(parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """`published(tied=..., dtype=...)`: a small LLaVA-OneVision of its authors' making, not yet saved."""
    config, model, more = SPECIFIC["llava_qwen"]
    tied = {"llava_qwen_tied": (config, model, more | {"tie_word_embeddings": True})}
    monkeypatch.setattr("tests.model.test_original.KINDS", KINDS | SPECIFIC | tied)

    def made(name: str = "source", **fields: Any) -> PublishedOneVision:
        return PublishedOneVision(tmp_path / name, parts["siglip_whole"], **fields)

    return made


@pytest.mark.parametrize(
    ("form", "fields"),
    [("safetensors", {"dtype": torch.float32}), ("shards", {"tied": True, "dtype": torch.bfloat16})],
    ids=["safetensors-fp32", "shards-tied-bf16"],
)
def test_pictures_of_any_size_get_the_tokens_and_logits_of_its_own_code(
    form: str, fields: dict[str, Any], published: Made, tmp_path: Path
) -> None:
    source = published(**fields)
    folder = source.save(form)
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert type(llava.model) is LlavaOnevisionForConditionalGeneration
    assert (llava.image_mode.mode, llava.renderer.template.name) == ("anyres_max_2", "qwen")
    assert llava.held == source.dtype and torch.equal(llava.newline, source.newline)
    out = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    vanilla = AutoModelForImageTextToText.from_pretrained(out)
    assert type(vanilla) is LlavaOnevisionForConditionalGeneration and vanilla.dtype == source.dtype
    words = source.config["vocab_size"]
    for size in SIZES:
        rows = source.rows(llava, picture(size))
        expected = logits(llava, rows, source.language)
        within = WITHIN[source.dtype] * float(expected.abs().max())
        assert len(rows) == llava.tiling.tokens(size)
        found = ours(llava, picture(size))[:words]
        torch.testing.assert_close(found, expected, rtol=0, atol=within)
        shown = llava.show(picture(size))
        ids, _ = llava.renderer.expand(llava.renderer.prompt(ASKED), [len(rows)], llava.image_token_id)
        inputs = {"pixel_values": shown.tiles[None].to(source.dtype), "image_sizes": torch.tensor([size[::-1]])}
        with torch.no_grad():
            theirs = vanilla(input_ids=torch.tensor([ids]), **inputs).logits[0, -1, :words].float()
        torch.testing.assert_close(theirs, expected, rtol=0, atol=within)
    with torch.no_grad():
        two = llava.look([llava.show(picture(size), 2) for size in SIZES[:2]])
    for size, rows in zip(SIZES[:2], two, strict=True):
        expected = source.beside(llava, picture(size))
        torch.testing.assert_close(rows, expected, rtol=0, atol=WITHIN[source.dtype] * float(expected.abs().max()))


@pytest.mark.parametrize("mode", ["anyres", "pad", "square"])
def test_a_siglip_of_a_llava_next_or_1_5_is_read_as_its_own_code_reads_it(mode: str, published: Made) -> None:
    source = published(dtype=torch.float32)
    source.config |= {"image_aspect_ratio": mode}
    source.config |= {} if mode == "anyres" else {"mm_patch_merge_type": "flat"}
    folder = source.save(**({} if mode == "anyres" else {"model.image_newline": None}))
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert llava.image_mode.mode == mode
    for size in SIZES:
        shown = picture(size)
        if mode == "square":
            pixels = source.normal(llava, [shown.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)])
            with torch.no_grad():
                rows = source.projector(source.features(pixels))[0]
        else:
            rows = source.rows(llava, shown) if mode == "anyres" else source.beside(llava, shown)[:-1]
        expected = logits(llava, rows, source.language)
        torch.testing.assert_close(ours(llava, shown)[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_at_full_size_tokens_are_those_of_its_own_code() -> None:
    """But for 138 of all up to 2304 x 2304: where a border is whole tokens LLaVA's division may fall a hair short."""
    grids = [[across * 384, down * 384] for across in range(1, 7) for down in range(1, 7)]
    tiling = AnyRes(384, 27, tuple(map(tuple, pinpoints_of(384, ONEVISION_GRIDS))), 9, alone=True)  # type: ignore[arg-type]
    draw = random.Random(5)
    sizes = {(draw.randint(1, 2600), draw.randint(1, 2600)) for _ in range(1500)} | {(640, 480), (1024, 899)}
    short = {(47, 423), (98, 1323), (357, 1666), (369, 820)}

    def theirs(size: tuple[int, int]) -> int:
        rows, columns = (len(range(1000)[part]) for part in kept(size, _padded(best_grid(size, grids)), 14))
        rows, columns = shrunk_to(rows, columns, 27, 9)
        return 729 + rows * (columns + 1)

    assert {size for size in sizes | short if tiling.tokens(size) != theirs(size)} == short


def _padded(grid: tuple[int, int]) -> tuple[int, int]:
    """A grid in whole tokens: 384 pixels are 27 tokens of 14, and 6 pixels more."""
    return grid[0] // 384 * 27 * 14, grid[1] // 384 * 27 * 14


@pytest.mark.parametrize("fields", [{}, {"tied": True, "dtype": torch.bfloat16}], ids=["fp16", "tied-bf16"])
@pytest.mark.parametrize("grids", [GRIDS, TILES], ids=["list", "range"])
def test_there_and_back_is_bit_equal(fields: dict[str, Any], grids: Any, published: Made, tmp_path: Path) -> None:
    source = published(**fields)
    source.config["image_grid_pinpoints"] = grids
    folder = source.save("shards")
    first = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    told = json.loads((first / "config.json").read_text())
    assert told["image_grid_pinpoints"] == [[high, wide] for wide, high in GRIDS]
    assert (told["vision_feature_layer"], told["vision_config"]["num_hidden_layers"]) == (-1, 2)
    back = export_original(first, tmp_path / "back", device="cpu")
    expected = {name: each for name, each in source.tensors().items() if not name.endswith("inv_freq")}
    equal(read_weights(back), expected)
    assert f"{TOWER}post_layernorm.weight" in expected and not any(".head." in name for name in expected)
    assert json.loads((back / "config.json").read_text()) == source.config
    again = export_hf(back, tmp_path / "again", vision_tower=source.tower, device="cpu")
    equal(load_file(first / "model.safetensors"), load_file(again / "model.safetensors"))
    assert (first / "config.json").read_text() == (again / "config.json").read_text()


def test_a_head_that_is_the_embeddings_is_kept_once_and_another_refused(published: Made) -> None:
    source = published(tied=True)
    embeddings = source.tensors()["model.embed_tokens.weight"]
    llava = load_original(source.save(**{"lm_head.weight": embeddings.clone()}), vision_tower=source.tower)
    assert llava.model.lm_head.weight is llava.model.get_input_embeddings().weight
    with pytest.raises(CheckpointError, match="tie_word_embeddings: true and a head that is not the embeddings"):
        load_original(source.save(**{"lm_head.weight": embeddings + 1}), vision_tower=source.tower)


def test_videos_are_shown_as_its_own_code_shows_them(published: Made, tmp_path: Path) -> None:
    source = published(dtype=torch.float32)
    folder = source.save("safetensors")
    assert load_original(folder, vision_tower=source.tower, device="cpu").tiling.frames == 8
    llava = load_original(folder, vision_tower=source.tower, device="cpu", image_mode="anyres_max_2_video_5")
    again = load(export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu"), device="cpu")
    assert (llava.tiling.frames, again.tiling.frames) == (5, 8)
    for model in (llava, again):
        for count in (1, 4, 5):
            shown = shown_frames(model, count)
            with torch.no_grad():
                rows = model.look([shown])[0]
            torch.testing.assert_close(rows, source.frames(shown.tiles), rtol=1e-4, atol=1e-4)
            assert len(rows) == model.tiling.tokens(shown.size) == 4 * count + 1


@pytest.mark.parametrize(
    "told",
    [{"mm_spatial_pool_mode": "average"}, {"mm_newline_position": "grid"}, {"mm_spatial_pool_stride": 4},
     {"add_faster_video": True}],
    ids=str,
)  # fmt: skip
def test_of_one_that_shows_videos_in_another_way_pictures_alone_are_read(
    told: dict[str, Any], published: Made, tmp_path: Path
) -> None:
    """So are LLaVA-Videos."""
    source = published()
    source.config |= told
    folder = source.save("safetensors")
    llava = load_original(folder, vision_tower=source.tower, device="cpu")
    assert (llava.image_mode.mode, llava.tiling.frames, llava.renderer.videos) == ("anyres_max_2_video_0", 0, False)
    with pytest.raises(ModelError, match="'anyres_max_2_video_8' for a LLaVA OneVision; expected anyres_max_2_video_0"):
        load_original(folder, vision_tower=source.tower, device="cpu", image_mode="anyres_max_2_video_8")
    first = export_hf(folder, tmp_path / "hf", vision_tower=source.tower, device="cpu")
    assert load(first, device="cpu").tiling.frames == 0
    back = export_original(first, tmp_path / "back", device="cpu")
    assert json.loads((back / "config.json").read_text()) == source.config


@pytest.fixture
def onevision(make: Any) -> Callable[..., Llava]:
    """`onevision(load="4bit", ...)`: built of a whole SigLIP and a Qwen2."""

    def made(**fields: Any) -> Llava:
        usual = {"vision": "siglip_whole", "language": "qwen2", "template": "qwen", "image_mode": "anyres_max_2"}
        llava: Llava = make(**(usual | fields))
        return llava

    return made


def same(one: Llava, two: Llava, within: float = 1e-4) -> None:
    """Tiles, tokens and logits of both."""
    assert one.tiling == two.tiling
    for size in SIZES:
        assert torch.equal(one.show(picture(size)).tiles, two.show(picture(size)).tiles)
        torch.testing.assert_close(ours(one, picture(size)), ours(two, picture(size)), rtol=within, atol=within)


@pytest.mark.parametrize("layer", [-2, -1])
def test_a_onevision_of_transformers_goes_there_and_back_without_what_it_does_not_compute_with(
    layer: int, onevision: Any, tmp_path: Path
) -> None:
    first = write_folder(onevision(vision_layer=layer), tmp_path / "hf")
    there = export_original(first, tmp_path / "there", device="cpu")
    config = json.loads((there / "config.json").read_text())
    assert (config["image_aspect_ratio"], config["mm_patch_merge_type"]) == ("anyres_max_2", "spatial_unpad")
    assert (config["image_grid_pinpoints"], config["mm_spatial_pool_mode"]) == (GRIDS, "bilinear")
    assert (config["mm_vision_tower"], config["unfreeze_mm_vision_tower"]) == ("siglip_vision_tower", True)
    assert config["model_type"] == "llava_qwen" and config["mm_vision_select_layer"] == -2
    assert "num_frames" not in config, "of 8 frames nothing is said, as in published ones"
    carried = {path.name for path in (there / "siglip_vision_tower").iterdir()}
    assert carried == {"config.json", "preprocessor_config.json"}, "its weights are in the checkpoint's own file"
    back = export_hf(there, tmp_path / "back", device="cpu")
    held, again = load_file(first / "model.safetensors"), load_file(back / "model.safetensors")
    unused = ("head.", "encoder.layers.2.") if layer == -2 else ("head.",)
    left = {name for name in held if "vision_tower" in name and any(part in name for part in unused)}
    assert held.keys() - again.keys() == left and left
    equal({name: each for name, each in held.items() if name not in left}, again)
    one, two = load(first, device="cpu"), load(back, device="cpu")
    same(one, two)
    assert one.renderer.template.name == two.renderer.template.name == "qwen"
    assert config["mm_newline_position"] == "one_token", "so its own code shows videos"
    with torch.no_grad():
        rows = [model.look([shown_frames(model, 3)])[0] for model in (one, two)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)


def test_what_was_trained_here_leaves_in_llavas_layouts(
    onevision: Any, finetune: Any, train_a_little: Any, parts: Any, tmp_path: Path
) -> None:
    llava = onevision(image_mode="anyres_max_2_video_5")
    prepare(llava, finetune(), say=lambda text: None)
    train_a_little(llava)
    saved = save(llava, tmp_path / "saved")
    whole = export_original(saved, tmp_path / "whole", device="cpu")
    same(load_original(whole), llava)
    light = export_original(saved, tmp_path / "light", weights="adapter", device="cpu")
    assert json.loads((light / "config.json").read_text())["mm_vision_tower"] == "siglip_vision_tower"
    assert (light / "siglip_vision_tower" / "model.safetensors").is_file()
    again = load_original(light, base=parts["qwen2"])
    same(again, llava)
    lighter = export_original(light, tmp_path / "lighter", weights="adapter", base=str(parts["qwen2"]), device="cpu")
    same(load_original(lighter, base=parts["qwen2"]), llava)


def test_a_tower_of_the_published_shape_is_named_and_no_other(onevision: Any) -> None:
    tower = onevision().tower
    assert not is_published(tower)
    for key, value in (SO400M | {"num_hidden_layers": 26}).items():
        setattr(tower.config, key, value)
    assert is_published(tower)


def test_lora_weights_that_were_trained_on_a_onevision_are_read_onto_it(published: Made, tmp_path: Path) -> None:
    first, second = published("base", dtype=torch.float32), published("tuned", dtype=torch.float32)
    second.newline = first.newline
    folder, trained = lora_folder(second, first.save("safetensors"))
    llava = load_original(folder, vision_tower=second.tower, device="cpu")
    expected = logits(llava, second.rows(llava, picture((300, 280))), trained)
    for model in (llava, merge_into(llava)):
        found = ours(model, picture((300, 280)))[: len(expected)]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_it_is_opened_like_any_other_model(published: Made) -> None:
    source = published()
    source.config["mm_vision_tower"] = str(source.tower)
    model = open_model(source.save(), device="cpu", open_image=lambda image: picture((70, 40)))
    usage = model.reply(ASKED, SamplingOptions(max_tokens=2)).usage
    assert usage is not None and usage.prompt_tokens > tokens_of((70, 40), GRIDS)


# --- what is refused ----------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no newline": ({"model.image_newline": None}, "1 missing tensors, the first: model.image_newline"),
    "no last norm": ({f"{TOWER}post_layernorm.bias": None}, f"the first: {TOWER}post_layernorm.bias"),
    "the layer that is not used": (
        {f"{TOWER}encoder.layers.2.layer_norm1.bias": torch.ones(32)},
        f"1 surplus tensors, the first: {TOWER}encoder.layers.2.layer_norm1.bias",
    ),
    "a pooling head": ({f"{TOWER}head.probe": torch.ones(1, 1, 32)}, f"1 surplus tensors, the first: {TOWER}head"),
    "a misshapen patch embedding": (
        {f"{TOWER}embeddings.patch_embedding.bias": torch.ones(31)}, "1 misshapen tensors, .* is .31,., not .32,.",
    ),
    "a faster video's token": ({"model.faster_token": torch.ones(64)}, "surplus tensors, the first: model.faster_tok"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused(name: str, published: Made, tmp_path: Path) -> None:
    assert_refused(published(), *WRONG[name], tmp_path / "out")


def test_what_its_own_code_could_not_say_is_refused(onevision: Any, published: Made, tmp_path: Path) -> None:
    first = write_folder(onevision(vision_layer=-3), tmp_path / "first")
    with pytest.raises(ModelError, match="found vision_layer -3 of 3; expected the last layer of a SigLIP or the one"):
        export_original(first, tmp_path / "out", device="cpu")
    plain = write_folder(onevision(image_mode="crop"), tmp_path / "plain")
    with pytest.raises(ModelError, match="image_mode crop: LLaVA's own code squashes a SigLIP's pictures"):
        export_original(plain, tmp_path / "out", device="cpu")
    source = published()
    with pytest.raises(ModelError, match="'anyres' for a LLaVA OneVision; expected anyres_max_2"):
        load_original(source.save(), vision_tower=source.tower, image_mode="anyres")
    source.describe(mm_patch_merge_type="flat")
    with pytest.raises(ModelError, match="anyres_max_2 and mm_patch_merge_type flat; expected anyres .LLaVA-NeXT. or"):
        load_original(source.folder, vision_tower=source.tower)
    assert not (tmp_path / "out").exists()
