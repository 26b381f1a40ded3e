"""Models that are published as pickles: refused with the command that converts them, and by it the same bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbench.cli import main
from workbench.errors import CheckpointError, ModelError
from workbench.model.export import export_hf
from workbench.model.llava import build
from workbench.model.proof import probe
from workbench.recipe import ModelSpec


def pickled(folder: Path, out: Path, *, files: int = 1, **more: Any) -> Path:
    """The same model as its makers' old code saved it: buffers too, tied weights as one memory."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors") | more
    (out / "model.safetensors").unlink()
    if files == 1:
        torch.save(tensors, out / "pytorch_model.bin")
        return out
    held = {name: f"pytorch_model-{1 + number % files:05}-of-{files:05}.bin" for number, name in enumerate(tensors)}
    for file in set(held.values()):
        torch.save({name: each for name, each in tensors.items() if held[name] == file}, out / file)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": held}))
    return out


def test_a_llava_of_two_pickled_parts_is_that_of_the_parts_themselves(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    vicuna = pickled(parts["llama"], tmp_path / "vicuna", files=2, **frequencies)
    places = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    clip = pickled(parts["clip"], tmp_path / "clip", **places)
    spec = ModelSpec(vision=str(clip), language=str(vicuna), device="cpu")
    with pytest.raises(ModelError, match=r"a pickle that can run code .*: workbench export .* OUT --as hf"):
        build(spec, template="v1", image_mode="pad")
    for folder in (vicuna, clip):
        assert main(["export", str(folder), f"{folder}-safe", "--as", "hf"]) == 0
    capsys.readouterr()
    assert sorted(path.name for path in Path(f"{vicuna}-safe").iterdir()) == sorted(
        path.name for path in parts["llama"].iterdir()
    )
    before, after = load_file(parts["llama"] / "model.safetensors"), load_file(f"{vicuna}-safe/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    safe = spec.model_copy(update={"vision": f"{clip}-safe", "language": f"{vicuna}-safe"})
    plain = spec.model_copy(update={"vision": str(parts["clip"]), "language": str(parts["llama"])})
    ids, logits = probe(build(safe, template="v1", image_mode="pad"))
    same_ids, same = probe(build(plain, template="v1", image_mode="pad"))
    assert ids == same_ids and torch.equal(logits, same)


def test_tied_weights_keep_both_names(parts: dict[str, Path], tmp_path: Path) -> None:
    one = torch.arange(6.0)
    out = export_hf(pickled(parts["llama"], tmp_path / "tied", first=one, second=one), tmp_path / "out")
    held = load_file(out / "model.safetensors")
    assert torch.equal(held["first"], one) and torch.equal(held["second"], one)


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_would_run_code_a_lost_shard_or_a_full_folder_is_refused(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    bad = pickled(parts["llama"], tmp_path / "bad", extra=Harmful(tmp_path / "mark"))
    with pytest.raises(CheckpointError, match=r"would run code when it is opened \(posix.mkdir\).*it was not run"):
        export_hf(bad, tmp_path / "out")
    broken = pickled(parts["llama"], tmp_path / "nan", **{"model.norm.weight": torch.full((64,), float("nan"))})
    with pytest.raises(CheckpointError, match=r"nan: found 64 of 64 values of model.norm.weight that are no numbers"):
        export_hf(broken, tmp_path / "out")
    cut = pickled(parts["llama"], tmp_path / "cut", files=2)
    (cut / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="no pytorch_model-00002-of-00002.bin; expected every file"):
        export_hf(cut, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "mark").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ModelError, match="full: found files; expected a new or empty folder"):
        export_hf(pickled(parts["llama"], tmp_path / "good"), tmp_path / "full")
