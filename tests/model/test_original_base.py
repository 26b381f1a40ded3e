"""LoRA weights of LLaVA's own whose base is itself a LLaVA: read onto it, with what was not trained taken from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.test_original import Harmful, Made, Published, lora_folder, ours, own_tower
from tests.model.test_original_next import PublishedNext, logits, picture
from tests.model.test_original_next import ours as ours_next
from workbench.errors import CheckpointError, ModelError
from workbench.model.export import export_hf, export_original
from workbench.model.llava import load
from workbench.model.lora import merge_into
from workbench.model.original import read_weights
from workbench.model.original_in import load_original

FP32 = {"dtype": torch.float32}
TRAINABLES = "non_lora_trainables.bin"


@pytest.fixture
def published(parts: dict[str, Path], tmp_path: Path) -> Made:
    """`published("base", dtype=...)`: a small LLaVA of its authors' making, not yet saved."""

    def made(name: str, **fields: Any) -> Published:
        return Published(tmp_path / name, parts["clip"], **fields)

    return made


def trained_on(base: Path, source: Published, **changed: Any) -> tuple[Path, Any]:
    """LoRA weights that were trained on a LLaVA, its projector trained on with them; and the trained model."""
    for parameter in source.projector.parameters():
        parameter.data += 0.02
    return lora_folder(source, base, **changed)


def without(folder: Path, word: str) -> None:
    held = torch.load(folder / TRAINABLES)
    torch.save({name: each for name, each in held.items() if word not in name}, folder / TRAINABLES)


@pytest.mark.parametrize("form", ["shards", "safetensors"])
def test_lora_weights_are_merged_onto_the_llava_they_were_trained_on(
    form: str,
    published: Made,
    tmp_path: Path,
) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    folder, trained = trained_on(first.save(form), second)
    llava = load_original(folder, vision_tower=second.tower, device="cpu")
    expected = second.logits(llava, trained)
    torch.testing.assert_close(ours(llava)[-1, : expected.shape[1]], expected[-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours(llava)[-1, : expected.shape[1]], first.logits(llava)[-1], atol=0.1)
    out = export_hf(folder, tmp_path / "hf", vision_tower=second.tower, device="cpu")
    again = load(out, device="cpu")
    torch.testing.assert_close(ours(again)[-1, : expected.shape[1]], expected[-1], rtol=1e-4, atol=1e-4)
    back = export_original(out, tmp_path / "back", device="cpu")
    assert json.loads((back / "config.json").read_text()) == second.config
    projector = {f"model.mm_projector.{name}": each for name, each in second.projector.state_dict().items()}
    assert all(torch.equal(each, read_weights(back)[name]) for name, each in projector.items())
    (first.folder / "template.yaml").write_text('{name: own, first: "{content} A:", answer: " {answer}{eos}"}')
    assert load_original(folder, vision_tower=second.tower, device="cpu").renderer.template.name == "own"


def test_a_projector_that_was_not_trained_is_the_bases(published: Made, tmp_path: Path) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    folder, trained = lora_folder(second, first.save())
    without(folder, "mm_projector")
    llava = load_original(folder, vision_tower=second.tower, device="cpu")
    expected = first.logits(llava, trained)
    torch.testing.assert_close(ours(llava)[-1, : expected.shape[1]], expected[-1], rtol=1e-4, atol=1e-4)
    one = {"base_model.model.model.mm_projector.0.weight": first.projector[0].weight.detach()}  # type: ignore[index]
    torch.save(one, folder / TRAINABLES)
    with pytest.raises(CheckpointError, match="a projector of 1 layers"):
        load_original(folder, vision_tower=second.tower, device="cpu")


def test_a_nexts_newline_and_trained_tower_are_the_bases(parts: dict[str, Path], tmp_path: Path) -> None:
    first, second = (PublishedNext(tmp_path / name, parts["clip"], **FP32) for name in ("base", "tuned"))
    second.newline = first.newline
    folder, trained = trained_on(first.save("safetensors"), second)
    llava = load_original(folder, vision_tower=second.tower, device="cpu")
    assert torch.equal(llava.newline, first.newline)
    expected = logits(llava, second.rows(llava, picture((140, 66))), trained)
    torch.testing.assert_close(ours_next(llava, picture((140, 66)))[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    merged = ours_next(merge_into(llava), picture((140, 66)))
    torch.testing.assert_close(merged[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    held, own = torch.load(folder / TRAINABLES), first.newline + 1
    torch.save(held | {"base_model.model.model.image_newline": own}, folder / TRAINABLES)
    assert torch.equal(load_original(folder, vision_tower=second.tower, device="cpu").newline, own), "it was trained"
    second.describe(unfreeze_mm_vision_tower=False)
    with pytest.raises(CheckpointError, match="a wrong base: a vision tower of its own; expected one without"):
        load_original(folder, vision_tower=second.tower, device="cpu")


def test_a_tower_that_a_base_holds_and_does_not_tell_of_is_taken_and_told(published: Made, tmp_path: Path) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    tower = own_tower(first.tower)
    folder, _ = trained_on(first.save(**tower), second)
    out = export_hf(folder, tmp_path / "hf", vision_tower=second.tower, device="cpu")
    back = export_original(out, tmp_path / "back", device="cpu")
    straight = export_original(folder, tmp_path / "straight", vision_tower=second.tower, device="cpu")
    light = export_original(folder, tmp_path / "light", weights="adapter", vision_tower=second.tower, device="cpu")
    for written in (back, straight, light):
        assert json.loads((written / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
    for written in (back, straight):
        held = read_weights(written)
        assert all(torch.equal(each, held[name]) for name, each in tower.items())
    again = load_original(light, base=first.folder, vision_tower=second.tower, device="cpu")
    expected = ours(load_original(folder, vision_tower=second.tower, device="cpu"))
    torch.testing.assert_close(ours(again), expected, rtol=1e-5, atol=1e-5)
    bare = second.projector.state_dict()
    torch.save({f"model.mm_projector.{name}": each for name, each in bare.items()}, tmp_path / "mm_projector.bin")
    given: Any = {"vision_tower": second.tower, "base": str(first.folder), "device": "cpu"}
    held = read_weights(export_original(tmp_path / "mm_projector.bin", tmp_path / "bare", **given))
    assert all(torch.equal(each, held[name]) for name, each in tower.items())


def test_a_bare_projector_is_put_onto_the_llava_it_was_trained_on(published: Made, tmp_path: Path) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    base, folder = first.save(), second.describe()
    for parameter in second.projector.parameters():
        parameter.data += 0.02
    held = {f"model.mm_projector.{name}": each for name, each in second.projector.state_dict().items()}
    torch.save(held, folder / "mm_projector.bin")
    llava = load_original(folder, vision_tower=second.tower, base=base, device="cpu")
    expected = second.logits(llava)
    torch.testing.assert_close(ours(llava)[-1, : expected.shape[1]], expected[-1], rtol=1e-4, atol=1e-4)


def test_the_bases_hash_is_recorded_and_looked_at(published: Made, tmp_path: Path) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    base = first.save("safetensors")
    folder, _ = trained_on(base, second)
    light = export_original(folder, tmp_path / "light", weights="adapter", vision_tower=second.tower, device="cpu")
    recorded = json.loads((light / "config.json").read_text())["base_sha256"]
    assert recorded.keys() == {"model.safetensors"}
    again = load_original(light, base=base, vision_tower=second.tower, device="cpu")
    expected = ours(load_original(folder, vision_tower=second.tower, device="cpu"))
    torch.testing.assert_close(ours(again), expected, rtol=1e-5, atol=1e-5)
    other = shutil.copytree(base, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="a wrong base: other weights; expected those whose SHA-256"):
        load_original(light, base=other, vision_tower=second.tower, device="cpu")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_what_is_no_base_is_refused_by_name(published: Made, tmp_path: Path) -> None:
    first, second = published("base", **FP32), published("tuned", **FP32)
    base = first.save()
    folder, _ = trained_on(base, second)
    standard = export_hf(base, tmp_path / "hf", vision_tower=first.tower, device="cpu")
    with pytest.raises(ModelError, match="a LLaVA of transformers as base; .*hf OUT --as llava; and say --base OUT"):
        load_original(folder, vision_tower=second.tower, base=standard)
    with pytest.raises(ModelError, match="a lora folder as base; expected a language model or a full LLaVA; merge it"):
        load_original(folder, vision_tower=second.tower, base=folder)
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | {"intermediate_size": 128}))
    with pytest.raises(CheckpointError, match="a wrong base: intermediate_size 128; expected 96, as"):
        load_original(folder, vision_tower=second.tower)
    (base / "config.json").write_text(json.dumps(told))
    first.save(**{"model.resampler.query": torch.ones(2)})
    with pytest.raises(CheckpointError, match="base: found 1 surplus tensors, the first: model.resampler.query"):
        load_original(folder, vision_tower=second.tower)
    torch.save(first.tensors() | {"model.extra": Harmful(tmp_path / "mark")}, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="would run code when it is opened"):
        load_original(folder, vision_tower=second.tower)
    assert not (tmp_path / "mark").exists()
