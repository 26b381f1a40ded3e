from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.errors import CheckpointError, DataError, ModelError
from workbench.model import base, proof
from workbench.model.checkpoint import export_hf, load_checkpoint, read_projector, save
from workbench.model.llava import build, load
from workbench.model.lora import merge_into
from workbench.model.precision import check_quantised
from workbench.model.proof import file_table, probe
from workbench.model.stages import prepare
from workbench.model.tensors import same_bits
from workbench.recipe import ModelSpec, TrainSpec


@pytest.fixture
def tuned(make, finetune, train_a_little):
    def made(train=None, **fields):
        llava = make(**fields)
        prepare(llava, train or finetune(), say=lambda text: None)
        train_a_little(llava)
        return llava

    return made


def same(one, other, bound: float = 0.0) -> None:
    (ids, logits), (other_ids, other_logits) = probe(one), probe(other)
    assert ids == other_ids
    torch.testing.assert_close(other_logits, logits, rtol=0, atol=bound)


def seal(folder) -> None:
    """Write the hashes anew, as somebody would who changed a file on purpose."""
    manifest = json.loads((folder / "checkpoint.json").read_text())
    table = file_table(folder)
    table.pop("checkpoint.json")
    (folder / "checkpoint.json").write_text(json.dumps(manifest | {"files": table}))


@pytest.mark.parametrize(
    "fields", [{}, {"load": "4bit"}, {"load": "8bit"}, {"load": "bf16"}, {"projector": "linear", "template": "plain"}]
)
def test_a_checkpoint_loads_to_the_same_model(tuned, tmp_path, fields):
    llava = tuned(**fields)
    folder = save(llava, tmp_path / "saved", step=7, extra={"loss": 0.5})
    again = load(folder, device="cpu")
    same(llava, again)
    check_quantised(again.model, fields.get("load", "fp32"))
    assert again.spec == llava.spec
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["step"] == 7 and manifest["extra"] == {"loss": 0.5} and manifest["versions"]["torch"]
    assert (folder / "adapter" / "adapter_config.json").is_file() and (folder / "chat_template.jinja").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("load", ["fp32", "bf16"])
@pytest.mark.parametrize("trains", [{"vision": "full"}, {"vision": "lora"}, {"language": "full", "vision": "full"}])
def test_trained_towers_and_language_models_are_saved_in_float32(tuned, finetune, tmp_path, trains, load):
    llava = tuned(train=finetune(**trains), load=load)
    again = load_checkpoint(save(llava, tmp_path / "saved"), device="cpu")
    same(llava, again)
    before, after = (dict(one.model.named_parameters()) for one in (llava, again))
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_tied_embeddings_and_an_added_image_token_survive(tuned, tmp_path):
    train = TrainSpec(stage="finetune", language="full", lr=1e-3)
    llava = tuned(train=train, language="qwen2")
    again = load(save(llava, tmp_path / "saved"), device="cpu")
    same(llava, again)
    assert again.model.lm_head.weight.data_ptr() == again.model.get_input_embeddings().weight.data_ptr()


def test_a_folder_is_self_contained_and_can_be_moved(tuned, parts, tmp_path):
    sources = {name: shutil.copytree(parts[name], tmp_path / name) for name in ("clip", "llama")}
    spec = ModelSpec(vision=str(sources["clip"]), language=str(sources["llama"]), device="cpu", load="4bit")
    llava = build(spec, template="v1", image_mode="pad", seed=1)
    folder = save(llava, tmp_path / "saved")
    for path in sources.values():
        shutil.rmtree(path)
    moved = folder.rename(tmp_path / "moved")
    again = load(moved, device="cpu")
    same(llava, again)
    same(llava, load(save(again, tmp_path / "resaved"), device="cpu"))
    assert again.image_mode.mode == "pad"


def test_a_large_base_is_named_with_its_hash_and_checked(tuned, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "COPY_BELOW", 10)
    llava = tuned()
    folder = save(llava, tmp_path / "saved")
    assert not (folder / "base").exists()
    same(llava, load(folder, device="cpu"))
    manifest = json.loads((folder / "checkpoint.json").read_text())
    changed = shutil.copytree(parts["clip"], tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, changed / "model.safetensors", metadata={"format": "pt"})
    for source, message in ((changed, "weights that changed since"), (tmp_path / "gone", "found no base at .*gone")):
        manifest["base"]["vision"]["source"] = str(source)
        (folder / "checkpoint.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=message):
            load(folder, device="cpu")


def test_loading_in_floating_point_dequantises_the_base_it_was_trained_on(tuned, finetune, tmp_path, train_a_little):
    llava = tuned(load="4bit")
    folder = save(llava, tmp_path / "saved")
    loose = load(folder, load="fp32", device="cpu")
    assert check_quantised(loose.model, "fp32") == 0
    same(llava, loose, bound=1e-4)
    prepare(loose, finetune(), say=lambda text: None)  # and goes on training from there
    train_a_little(loose)
    same(loose, load(save(loose, tmp_path / "more"), device="cpu"))


def test_a_merged_model_can_be_saved_and_loaded(tuned, tmp_path):
    llava = merge_into(tuned(load="4bit"))
    same(llava, load(save(llava, tmp_path / "saved"), device="cpu"))


def test_saving_moves_no_random_state_and_leaves_the_training_mode(tuned, tmp_path):
    llava = tuned()
    llava.model.train()
    llava.tower.eval()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    save(llava, tmp_path / "saved")
    assert torch.equal(before, torch.get_rng_state())
    assert llava.model.training and not llava.tower.training


def test_an_older_checkpoint_is_replaced_and_own_files_are_kept_and_hashed(tuned, tmp_path):
    llava = tuned()
    save(llava, tmp_path / "last", step=1)
    folder = save(llava, tmp_path / "last", step=2, also=lambda path: (path / "optimiser.bin").write_bytes(b"state"))
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["step"] == 2 and manifest["files"]["optimiser.bin"]["bytes"] == 5


def test_a_save_that_cannot_be_proven_leaves_nothing_and_keeps_the_older_one(tuned, tmp_path, train_a_little):
    llava = tuned()
    save(llava, tmp_path / "last", step=1)
    with torch.no_grad():
        llava.model.lm_head.weight += 1  # a change that no stage declared, so that no file holds it
    with pytest.raises(CheckpointError, match="another lm_head.weight"):
        save(llava, tmp_path / "last", step=2)
    assert json.loads((tmp_path / "last" / "checkpoint.json").read_text())["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_other_logits_and_other_ids_are_found(tuned, make):
    llava, other = tuned(), tuned()
    other.model.config.vision_feature_layer = -1
    with pytest.raises(CheckpointError, match="logits that differ by"):
        proof.prove(llava, lambda: other)
    other = tuned(template="llava_v1")
    with pytest.raises(CheckpointError, match="the saved tokenizer or template: found other ids"):
        proof.prove(llava, lambda: other)
    plain = make()
    with pytest.raises(CheckpointError, match="another set of tensors: .*base_layer.weight"):
        proof.prove(llava, lambda: plain)


def test_a_model_too_large_to_hold_twice_is_saved_and_exported_with_its_tensors_compared(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "LOGITS_BELOW", 0)
    llava = tuned(load="4bit")
    folder = save(llava, tmp_path / "saved")
    same(llava, load(folder, device="cpu"))
    same(llava, load(export_hf(folder, tmp_path / "out", device="cpu"), device="cpu"), bound=1e-3)


def test_bits_not_numbers_are_compared():
    nan = torch.tensor([float("nan"), 1.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.ones(2), torch.ones(2, dtype=torch.bfloat16))


def test_damage_is_named(tuned, tmp_path):
    whole = save(tuned(), tmp_path / "whole")

    def damaged(change, match: str, *, resealed: bool = False) -> None:
        folder = shutil.copytree(whole, tmp_path / "damaged")
        change(folder)
        if resealed:
            seal(folder)
        with pytest.raises(CheckpointError, match=match):
            load(folder, device="cpu")
        shutil.rmtree(folder)

    def rewrite(folder, change) -> None:
        path = folder / "projector.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    key = "model.multi_modal_projector.linear_1.weight"
    cut = lambda folder: (folder / "projector.safetensors").write_bytes(b"x" * 100)  # noqa: E731
    damaged(lambda folder: (folder / "projector.safetensors").unlink(), "projector.safetensors: found no such file")
    damaged(cut, "projector.safetensors: found 100 bytes; expected .* as saved")
    damaged(cut, "a damaged or cut-off file", resealed=True)
    damaged(lambda folder: (folder / "checkpoint.json").write_text('{"format"'), "a file that is cut off")
    damaged(lambda folder: (folder / "checkpoint.json").write_text("[]"), "of type list; expected an object")
    damaged(
        lambda folder: (folder / "checkpoint.json").write_text('{"format": 9}'), "found format 9; expected format 1"
    )
    damaged(lambda folder: rewrite(folder, lambda t: t.update({key: t[key] + 1})), "a changed file")
    damaged(lambda folder: rewrite(folder, lambda t: t.pop(key)), f"1 missing tensors, the first: {key}", resealed=True)
    damaged(
        lambda folder: rewrite(folder, lambda t: t.update(extra=torch.ones(1))),
        "1 surplus tensors, the first: extra",
        resealed=True,
    )
    damaged(
        lambda folder: rewrite(folder, lambda t: t.update({key: t[key][:, :-1].contiguous()})),
        r"1 misshapen tensors, the first: .*linear_1.weight is \(64, 31\), not \(64, 32\)",
        resealed=True,
    )


def test_what_a_folder_is_follows_from_its_content(tuned, tmp_path):
    (tmp_path / "llava-v1.5-7b-lora").mkdir()
    (tmp_path / "llava-v1.5-7b-lora" / "notes.txt").write_text("nothing")
    with pytest.raises(ModelError, match=r"a folder with notes.txt; expected run.json .a run., checkpoint.json"):
        load(tmp_path / "llava-v1.5-7b-lora")


def test_a_run_folder_stands_for_its_checkpoint(tuned, tmp_path):
    from workbench.run import Run

    with Run.create(tmp_path / "run", {"name": "x"}, kind="train"):
        with pytest.raises(CheckpointError, match="a run without a checkpoint yet"):
            load(tmp_path / "run")
        llava = tuned()
        save(llava, tmp_path / "run" / "checkpoints" / "best")
    same(llava, load(tmp_path / "run", device="cpu"))
    Run.create(tmp_path / "late", {"name": "x"}, kind="train").fail(DataError("gone.png", found="no such file"))
    with pytest.raises(CheckpointError, match=r"it failed before it saved one \(DataError: gone.png: found no such"):
        load(tmp_path / "late")


def test_a_projector_is_taken_from_a_checkpoint_and_from_a_hugging_face_folder(tuned, make, tmp_path):
    llava = tuned(train=TrainSpec(stage="align", language="frozen", lr=1e-3))
    folder = save(llava, tmp_path / "aligned")
    other = make(projector_from=str(folder), load="4bit", seed=9)
    assert torch.equal(other.projector.linear_2.weight, llava.projector.linear_2.weight)
    llava.model.save_pretrained(tmp_path / "hf")
    kind, found = read_projector(tmp_path / "hf")
    assert kind == "mlp2x_gelu"
    assert torch.equal(found["model.multi_modal_projector.linear_1.weight"], llava.projector.linear_1.weight)
    with pytest.raises(ModelError, match="aligned: found a mlp2x_gelu projector; expected linear"):
        make(projector_from=str(folder), projector="linear")


def test_training_goes_on_from_a_checkpoint_named_in_the_recipe(tuned, finetune, tmp_path):
    folder = save(tuned(load="4bit"), tmp_path / "saved")
    spec = ModelSpec(checkpoint=str(folder), load="4bit", device="cpu")
    llava = build(spec, template="v1", image_mode="square")
    groups = prepare(llava, finetune(), say=lambda text: None)
    assert [group.name for group in groups] == ["language lora", "projector"]
    same(llava, load(save(llava, tmp_path / "more"), device="cpu"))


def test_a_hugging_face_llava_is_a_base_like_any_other(tuned, make, finetune, tmp_path, train_a_little):
    source = make()
    source.model.save_pretrained(tmp_path / "hf")
    source.tokenizer.save_pretrained(tmp_path / "hf")
    spec = ModelSpec(checkpoint=str(tmp_path / "hf"), load="4bit", device="cpu")
    llava = build(spec, template="v1", image_mode="pad")
    prepare(llava, finetune(), say=lambda text: None)
    train_a_little(llava)
    again = load(save(llava, tmp_path / "saved"), device="cpu")
    same(llava, again)
    name = "model.language_model.layers.1.mlp.up_proj"
    change = again.model.get_submodule(name).get_delta_weight("default").detach()
    merge_into(again, base="original")
    torch.testing.assert_close(again.model.get_submodule(name).weight, source.model.get_submodule(name).weight + change)


def test_bitsandbytes_is_silent_about_a_download_nobody_wants_and_about_nothing_else():
    """Every 4-bit command began with `Failed to load CPU gemm_4bit_forward from kernels-community`."""
    from bitsandbytes.backends.cpu.ops import logger

    heard = ["Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "something else"]
    kept = [text for text in heard if logger.filter(logging.makeLogRecord({"msg": text}))]
    assert kept == heard[1:]
