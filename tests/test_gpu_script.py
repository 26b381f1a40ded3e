"""The script that measures a GPU, in its tiny form: every part of the product's own runs, and nothing runs twice."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from workbench.model import proof
from workbench.model.precision import dequantised_weight, is_quantised
from workbench.run import Run

FOLDER = Path(__file__).parent / "benchmarks"
Job = Callable[..., dict[str, Any]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module below tests/benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def house(load: Callable[[str], Any], home: Path) -> Any:
    return load("peers.gpu_house")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    def made(**fields: Any) -> dict[str, Any]:
        folder = tmp_path / "job"
        folder.mkdir()
        usual = {"size": "tiny", "load": "bf16", "device": "cpu", "batch": 6, "rounds": 1}
        return usual | {"folder": str(folder)} | fields

    return made


@pytest.fixture
def unwritten(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at full size: weights lie in no file, and a second model is too large to prove a checkpoint by."""
    monkeypatch.setattr(house, "write_weights", lambda *given: None)
    monkeypatch.setattr(proof, "LOGITS_BELOW", 0)


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parents[1])}
    command = [sys.executable, str(FOLDER / "gpu.py"), "--out", str(out)]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no CUDA device here: nothing is measured")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "language", "projector"),
    [
        ("llava-1.5-7b", 6_738_415_616 + 64 * 2 * 4096, 20_979_712),
        ("llava-1.5-13b", 13_015_864_320 + 64 * 2 * 5120, 31_467_520),
        ("llava-v1.6-vicuna-7b", 6_738_415_616 + 64 * 2 * 4096, 20_979_712 + 4096),
        ("llava-v1.6-34b", 34_388_917_248 + 64 * 2 * 7168, 58_734_592 + 7168),
    ],
)
def test_the_models_have_the_published_numbers(
    name: str, language: int, projector: int, load: Callable[[str], Any]
) -> None:
    """64 rows of tokens more, as the Hub's LLaVAs have; LLaVA-NeXT's newline beside the projector."""
    random_llava = load("peers.random_llava")
    model = random_llava.make(random_llava.SIZES[name], "bf16", torch.device("meta"))
    counts = {"language": 0, "vision_tower": 0, "projector": 0}
    for key, parameter in model.named_parameters():
        part = "vision_tower" if "vision_tower" in key else "language" if "language_model" in key else "projector"
        counts["language" if key.startswith("lm_head") else part] += parameter.numel()
    assert counts == {"language": language, "vision_tower": 303_507_456, "projector": projector}
    assert model.config.text_config.num_hidden_layers == len(model.model.language_model.layers)


@pytest.mark.parametrize("name", ["tiny", "tiny-next"])
def test_only_the_layers_of_the_language_model_are_held_in_four_bits(name: str, load: Callable[[str], Any]) -> None:
    random_llava = load("peers.random_llava")
    plain, packed = (
        random_llava.make(random_llava.SIZES[name], held, torch.device("cpu")) for held in ("bf16", "4bit")
    )
    linears = {key: one for key, one in plain.named_modules() if isinstance(one, torch.nn.Linear)}
    quantised = {key: one for key, one in packed.named_modules() if is_quantised(one)}
    assert quantised.keys() == {key for key in linears if key.startswith("model.language_model.layers.")}
    assert len(quantised) == 2 * 7
    for key, one in quantised.items():
        expected = linears[key].weight.detach()
        assert (dequantised_weight(one).float() - expected).abs().max() < 0.2 * expected.abs().max(), key
    assert torch.equal(plain.lm_head.weight, packed.lm_head.weight)


@pytest.mark.usefixtures("unwritten")
def test_an_answer_is_measured_beside_what_was_foreseen(house: Any, job: Job) -> None:
    told = house.chat(job(size="tiny-next", load="4bit"))
    assert told.keys() == {
        "made_s", "held_gb", "foreseen_gb", "measured_gb", "error_of_plan",
        "first_token_s", "first_question_s", "answered_tokens", "tokens_per_s", "shares",
    }  # fmt: skip
    assert told["shares"].keys() == {"second question", "second turn", "the same, a second later"}
    assert told["answered_tokens"] == 32 and told["tokens_per_s"] > 0 and told["first_token_s"] > 0
    assert told["error_of_plan"] == pytest.approx(told["foreseen_gb"] / told["measured_gb"] - 1)


@pytest.mark.parametrize(("size", "held", "kind"), [("tiny-next", "bf16", "align"), ("tiny", "4bit", "finetune")])
@pytest.mark.usefixtures("unwritten")
def test_a_stage_is_measured_beside_the_plan(size: str, held: str, kind: str, house: Any, job: Job) -> None:
    given = job(size=size, load=held, kind=kind)
    told = house.stage(given)
    assert told.keys() == {
        "plan_s", "foreseen_gb", "measured_gb", "error_of_plan", "losses", "step_s", "tokens_per_s", "checkpointed",
        "fullest",
    }  # fmt: skip
    assert len(told["losses"]) == len(told["step_s"]) == 2
    assert told["losses"][1] < told["losses"][0]
    assert told["foreseen_gb"] > 0.01 and told["measured_gb"] > 0.01
    trained = Run.open(Path(given["folder"], "run")).recipe
    assert (told["checkpointed"], trained.train.checkpointing) == (0, "off"), "as the plan has it"
    assert trained.train.stage == kind


@pytest.mark.parametrize(("kind", "words"), [("chat", "an answer takes 0.0 GB of 0.0 GB"), ("align", "of 2 MB on cpu")])
def test_what_does_not_fit_is_told_and_not_tried(
    kind: str, words: str, house: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_small_card(*given: Any, **named: Any) -> dict[str, Any]:
        recipe = recipe_of(*given, **named)
        return recipe | {"train": recipe["train"] | {"memory_gb": 0.002}}

    recipe_of = house.recipe_of
    monkeypatch.setattr(house, "recipe_of", on_a_small_card)
    monkeypatch.setattr(house, "as_llava", None)
    told = house.PARTS[kind](job(kind=kind, load="4bit"))
    assert "it does not fit: " in told["skipped"] and words in told["skipped"]
    assert "measured_gb" not in told


def test_shards_take_two_devices(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert house.shards({"device": "cuda"}) == {"skipped": "one device here: shards take at least two"}


@pytest.mark.timeout(900)  # five processes, each of which imports torch and transformers: 40 s of one free core
def test_parts_run_once_and_end_in_a_table(
    load: Callable[[str], Any], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = load("gpu")
    args = argparse.Namespace(tiny=True, out=tmp_path / "gpu.json", minutes=4.0, envs=tmp_path)
    name, skipped = "house / tiny-next / {} / finetune", {"skipped": "in all 9.0 MB of 1.0 MB: it does not fit: buy"}
    before = {name.format("bf16"): skipped, name.format("4bit"): {"error": "cut off"}}
    args.out.write_text(json.dumps(before))
    chosen = [("house", "tiny-next", "bf16", "finetune"), ("house", "tiny-next", "4bit", "finetune")]
    chosen.append(("shards", "tiny"))
    assert set(chosen) < set(gpu.parts(tiny=True))
    gpu.main(args, chosen)
    said = capsys.readouterr()
    assert said.err == "house / tiny-next / 4bit / finetune ...\nshards / tiny ...\n"
    found = json.loads(args.out.read_text())
    assert found.keys() == {*before, "shards / tiny"} and found[name.format("bf16")] == skipped
    assert len(found[name.format("4bit")]["losses"]) == len(found["shards / tiny"]["losses"]) == 2
    assert found["shards / tiny"]["processes"] == 2
    assert "| tiny-next | bf16 | 4bit |" in said.out and "| finetune, second step | does not fit | " in said.out
    assert "bf16, finetune: in all 9.0 MB of 1.0 MB: it does not fit: buy" in said.out
    assert "tiny in shards among 2: " in said.out

    gpu.main(args, chosen)
    again = capsys.readouterr()
    assert again.err == "" and again.out == said.out
    assert json.loads(args.out.read_text()) == found


def test_a_part_that_runs_out_of_time_ends_with_all_it_started(load: Callable[[str], Any], tmp_path: Path) -> None:
    place = tmp_path / "pid"
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=-3, stderr=-3)"  # DEVNULL
    code = f"import subprocess, sys; held = {child}; open({str(place)!r}, 'w').write(str(held.pid)); held.wait()"
    told = load("gpu")._ended([sys.executable, "-c", code], minutes=0.1)
    assert told == {"error": "not done within 0.1 minutes"}
    ended = time.monotonic() + 10
    while alive(int(place.read_text())) and time.monotonic() < ended:
        time.sleep(0.1)
    assert not alive(int(place.read_text()))


def alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
