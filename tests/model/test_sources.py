from __future__ import annotations

import time

import pytest

from workbench.errors import ModelError
from workbench.model.outline import outline
from workbench.model.sources import full_name, resolve, safetensors_files
from workbench.model.tokenizers import load_tokenizer
from workbench.recipe import ModelSpec
from workbench.resources import tiny_folder


def test_a_folder_and_tiny_resolve_without_a_network(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path.resolve()
    assert resolve("tiny", part="vision") == tiny_folder() / "vision"
    monkeypatch.chdir(tmp_path.parent)
    assert full_name(tmp_path.name) == str(tmp_path.resolve())
    assert full_name("tiny") == "tiny" and full_name("owner/name") == "owner/name"


def test_offline_is_said_in_one_line_and_at_once():
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(ModelError, match="llava-hf/llava-1.5-7b-hf: found .* no connection to the Hub") as caught:
        resolve("llava-hf/llava-1.5-7b-hf", say=said.append)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value) and "check the path" in str(caught.value)
    assert said == []


def test_offline_is_told_alike_where_only_settings_are_wanted():
    wanted = "llava-hf/llava-1.5-7b-hf: found no folder of that name, and no connection to the Hub .*connect once"
    with pytest.raises(ModelError, match=wanted):
        outline(ModelSpec(checkpoint="llava-hf/llava-1.5-7b-hf"), template="v1", image_mode="pad")
    with pytest.raises(ModelError, match=wanted):
        load_tokenizer("llava-hf/llava-1.5-7b-hf")


def test_a_name_that_is_neither_is_refused_before_any_network():
    with pytest.raises(ModelError, match="no such folder; expected a folder or a Hub name such as owner/name"):
        resolve("./missing/deep/folder")


def test_a_near_miss_on_the_disk_is_asked_about(tmp_path, monkeypatch):
    (tmp_path / "runs" / "holiday").mkdir(parents=True)
    (tmp_path / "runs" / "holidaz.txt").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/holidya", "./runs/holidya", str(tmp_path / "runs" / "holidya")):
        with pytest.raises(ModelError, match="did you mean .*runs/holiday\\?$"):
            resolve(name)


def test_weights_that_an_index_lists_must_all_be_there(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ModelError, match="found no model-1.safetensors"):
        safetensors_files(tmp_path)
    for odd in ("null", "[]", '{"a": null}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {odd}}}')
        with pytest.raises(ModelError, match="index.json: found a weight_map .*; expected the name of a file for each"):
            safetensors_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (tmp_path / "model-1.safetensors").touch()
    assert safetensors_files(tmp_path) == [tmp_path / "model-1.safetensors"]
