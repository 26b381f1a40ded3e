"""A LLaVA that answers with letters, yes and no, and files of benchmarks about scenes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from workbench.chat_model import GREEDY
from workbench.evaluation.asking import sent
from workbench.evaluation.questions import read_benchmark
from workbench.evaluation.task import Evaluation
from workbench.inference.engine import Engine
from workbench.model.llava import build
from workbench.recipe import ModelSpec

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_files as files  # noqa: E402


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a benchmark -> its data, in the published shape."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files.pope(folder / "pope", 3, 4)
    files.mme(folder / "mme", 3)
    files.seedbench(folder / "seedbench")
    table = files.mmbench(folder / "mmbench", 4)
    data = {name: folder / name for name in ("pope", "mme")}
    return data | {"seedbench": folder / "seedbench" / "SEED-Bench.json", "mmbench": table}


@pytest.fixture(scope="session")
def evaluations(published: dict[str, Path]) -> dict[str, Evaluation]:
    return {name: read_benchmark(name, data) for name, data in published.items()}


@pytest.fixture(scope="session")
def engine(evaluations: dict[str, Evaluation]) -> Engine:
    """The tiny LLaVA whose output layer learned the form of the answers, and a third of what is right."""
    torch.set_num_threads(1)
    llava = build(ModelSpec(vision="tiny", language="tiny"), template="tiny", image_mode="square")
    made = Engine(llava, name="taught")
    pairs = [_last_states(made, one, asked) for one in evaluations.values() for asked in one.conversations[::3]]
    states = torch.cat([state for state, _ in pairs]).detach()
    targets = torch.cat([target for _, target in pairs])
    head = llava.model.get_output_embeddings()
    head.requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(states), targets).backward()
        optimizer.step()
    head.requires_grad_(False)
    return made


@torch.no_grad()
def _last_states(made: Engine, evaluation: Evaluation, asked: object) -> tuple[torch.Tensor, torch.Tensor]:
    """What the language model says of a question and its answer: (tokens, width), and the tokens that come next."""
    llava = made.llava
    shown = sent(evaluation, asked, made)  # type: ignore[arg-type]
    rendered = llava.renderer.render(shown.add("assistant", asked.reference))  # type: ignore[attr-defined]
    [(_, row)] = made._prepare([(0, rendered)], GREEDY)
    ids, labels = llava.renderer.expand(rendered, [llava.image_tokens], llava.image_token_id)
    tokens = torch.tensor(ids)
    embedded = llava.model.get_input_embeddings()(tokens.masked_fill(tokens == llava.image_token_id, 0))
    embedded[tokens == llava.image_token_id] = row.features
    states = llava.model.get_decoder()(inputs_embeds=embedded[None]).last_hidden_state[0, :-1]
    following = torch.tensor(labels[1:])
    return states[following >= 0], following[following >= 0]
