"""How the tiny tokenizer and the tiny starting language model were made.

Knows: the byte-level tokenizer, how a document of `corpus.py` becomes input embeddings, and the training loop.
Does not know: pictures. The model is a plain Llama and saw text only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.data import scene_text
from workbench.data.scenes import NEVER_SEEN, sample_scene
from workbench.model.tiny import fast
from workbench.model.tiny.corpus import GLYPHS, NOUNS, SYSTEM, Document, document
from workbench.progress import progress

GROUP = 6
"""Batches of documents that are sorted by length together: little padding."""
STEP = 32
"""Batches are padded to a multiple of so many tokens: few shapes, as each is compiled once."""
Encoded = tuple[list[int], list[float], list[tuple[int, list[int]]]]
SPECIAL = ("<unk>", "<s>", "<pad>", "</s>", "<image>")
"""In the order of their ids. `</s>` must not be 2: transformers' CLIP would then pool at the largest id instead."""


def build_tokenizer(*, vocabulary: int, seed: int, documents: int = 6000) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written; the words of the corpus are one token each, digits stand alone."""
    rng = np.random.default_rng(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [plain_text(document(rng, filler=2)) for _ in range(documents)]
    words = [f" {word}" for word in (*NOUNS, *GLYPHS)]
    tokenizer.train_from_iterator([*texts, *words * 20, *[SYSTEM] * 200], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def plain_text(doc: Document) -> str:
    """The document as a person reads it."""
    context = " ".join(doc.context)
    if doc.plain:
        return f"{context} {doc.turns[0][1]}\n"
    return f"{doc.system} USER: {context}" + _turns_text(doc)


def _turns_text(doc: Document) -> str:
    texts = [f"{question} ASSISTANT: {answer}" for question, answer in doc.turns]
    return "\n" + "</s>USER: ".join(texts) + "</s>"


@dataclass
class Batch:
    """`ids`, `labels`, `weights`: (B, T). `pooled`: batch, position, token id, share, of embeddings that are means."""

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    pooled: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Encoder:
    """Documents to batches. Token ids of short texts are remembered, as the same words come again and again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.answer_mark = self.ids(" ASSISTANT:")
        self._memory: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def remembered(self, text: str) -> list[int]:
        found = self._memory.get(text)
        if found is None:
            found = self._memory[text] = self.ids(text)
        return found

    def encode(self, doc: Document) -> Encoded:
        """Ids, the weight of each id as a target, and pooled positions with the ids whose mean stands there."""
        head = "" if doc.plain else f"{doc.system} USER: " if doc.system else "USER: "
        ids = [self.tokenizer.bos_token_id, *self.remembered(head)]
        pooled: list[tuple[int, list[int]]] = []
        for index, phrase in enumerate(doc.context):
            words = self.remembered(phrase if index == 0 and not doc.pooled else " " + phrase)
            if doc.pooled and len(words) > 1:
                pooled.append((len(ids), words))
                ids.append(words[0])
            else:
                ids.extend(words)
        weights = [0.0 if doc.pooled else 0.02] * len(ids)
        if doc.plain:
            caption = self.ids(doc.turns[0][1] + "\n")
            return ids + caption, weights + [1.0] * len(caption), pooled
        for index, (question, answer) in enumerate(doc.turns):
            asked = self.ids(("\n" if index == 0 else "USER: ") + question + " ASSISTANT:")
            said = [*self.ids(" " + answer), self.tokenizer.eos_token_id]
            ids += asked + said
            weights += [0.02] * len(asked) + [1.0] * len(said)
        return ids, weights, pooled

    def batch(self, encoded: list[Encoded]) -> Batch:
        longest = max(len(ids) for ids, _, _ in encoded)
        width = -(-longest // STEP) * STEP
        ids = torch.full((len(encoded), width), self.tokenizer.pad_token_id)
        weights = torch.zeros(len(encoded), width)
        rows: list[tuple[int, int, int, float]] = []
        for row, (line, weight, pooled) in enumerate(encoded):
            ids[row, : len(line)] = torch.tensor(line)
            weights[row, : len(line)] = torch.tensor(weight)
            rows += [(row, place, word, 1 / len(words)) for place, words in pooled for word in words]
        columns = [torch.tensor(column) for column in zip(*rows, strict=True)] if rows else [torch.zeros(0).long()] * 4
        return Batch(ids, ids.clone(), weights, (columns[0], columns[1], columns[2], columns[3].float()))


def embed(model: LlamaForCausalLM, batch: Batch, *, noise: float, generator: torch.Generator | None) -> torch.Tensor:
    """(B, T, D) input embeddings; a pooled position holds the mean of its words, scaled and with noise."""
    table = model.get_input_embeddings()
    embedded = table(batch.ids)
    row, place, word, weight = batch.pooled
    if not len(row):
        return embedded
    mean = torch.zeros_like(embedded)
    mean = mean.index_put((row, place), table(word) * weight[:, None], accumulate=True)
    where = torch.zeros(batch.ids.shape, dtype=torch.bool)
    where[row, place] = True
    if noise:
        size = table.weight.detach().pow(2).mean().sqrt()
        scale = torch.empty(*batch.ids.shape, 1).uniform_(0.7, 2.5, generator=generator)
        jitter = torch.randn(embedded.shape, generator=generator) * size * noise
        mean = mean * scale + jitter
    return torch.where(where[..., None], mean, embedded)


def build_language(
    tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], out: Path, log: Path
) -> LlamaForCausalLM:
    """Train the starting language model; writes it, its tokenizer and one line of figures every 250 steps."""
    torch.manual_seed(settings["seed"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings["width"],
        intermediate_size=settings["mlp"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["heads"],
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        attn_implementation="eager",  # on a CPU its backward pass is faster than that of sdpa
    )
    model, encoder = LlamaForCausalLM(config), Encoder(tokenizer)
    body = fast.compiled(model.model, settings)
    optimizers = fast.optimizers(model, model.model.layers, settings)
    generator = torch.Generator().manual_seed(settings["seed"])
    batches = iter(DataLoader(Documents(encoder, settings), batch_size=None, num_workers=1, prefetch_factor=8))
    with progress("language model", total=settings["steps"], unit="step") as bar:
        for step in range(settings["steps"]):
            fast.set_rates(optimizers, fast.flat_then_linear(step, settings["steps"], settings["decay"]))
            with fast.autocast(settings):
                loss = language_loss(model, body, next(batches), noise=settings["noise"], generator=generator)
            fast.update(model.parameters(), optimizers, loss)
            bar.advance(1, note=f"loss {loss.item():.3f}")
            if (step + 1) % 250 == 0 or step + 1 == settings["steps"]:
                line = {"step": step + 1, "loss": round(loss.item(), 4)}
                line["accuracy"] = text_accuracy(model, encoder, filler=_part(settings["fillers"], step, settings))
                with log.open("a") as handle:
                    handle.write(json.dumps(line) + "\n")
                save_language(model, tokenizer, out)
    return model


class Documents(IterableDataset[Batch]):
    """Endless batches of documents, made in a process beside the training one.

    Look-ups are learned on short texts; filler words grow in steps to as many as an image has patches.
    """

    def __init__(self, encoder: Encoder, settings: dict[str, Any]) -> None:
        self.encoder, self.settings = encoder, settings

    def __iter__(self) -> Iterator[Batch]:
        rng, step, size = np.random.default_rng([self.settings["seed"], 1]), 0, self.settings["batch"]
        while True:
            most, recall = (_part(self.settings[name], step, self.settings) for name in ("fillers", "recall"))
            docs = [document(rng, filler=int(rng.integers(most + 1)), recall=recall) for _ in range(GROUP * size)]
            lines = sorted((self.encoder.encode(doc) for doc in docs), key=lambda line: len(line[0]))
            for index in rng.permutation(GROUP):
                step += 1
                yield self.encoder.batch(lines[int(index) * size : (int(index) + 1) * size])


def _part(values: Sequence[Any], step: int, settings: dict[str, Any]) -> Any:
    """The value for `step`, where each of `values` holds for an equal part of the run."""
    return values[min(len(values) - 1, step * len(values) // settings["steps"])]


def language_loss(
    model: LlamaForCausalLM,
    body: Callable[..., Any],
    batch: Batch,
    *,
    noise: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Weighted mean cross-entropy; the head is computed on rows with a weight only. `body`: the model without head."""
    hidden = body(inputs_embeds=embed(model, batch, noise=noise, generator=generator), use_cache=False)[0]
    weights = batch.weights[:, 1:]
    used = weights > 0
    logits = model.lm_head(hidden[:, :-1][used]).float()
    losses = functional.cross_entropy(logits, batch.labels[:, 1:][used], reduction="none")
    return (losses * weights[used]).sum() / weights[used].sum()


@torch.no_grad()
def text_accuracy(model: LlamaForCausalLM, encoder: Encoder, *, filler: int, count: int = 60) -> dict[str, float]:
    """Accuracy per question type, from text with pooled phrases, on seeds and pairs never trained on."""
    rng = np.random.default_rng(10_007)
    right: dict[str, list[bool]] = {}
    for kind, ask in scene_text.QUESTIONS.items():
        docs: list[Document] = []
        while len(docs) < count:
            scene = sample_scene(rng)
            unseen = any((thing.shape, thing.color) in NEVER_SEEN for thing in scene.objects)
            question = ask(scene, rng)
            if question is not None and unseen:
                words = ["."] * filler + [scene_text.phrase(thing) for thing in scene.objects]
                context = tuple(words[int(index)] for index in rng.permutation(len(words)))
                docs.append(Document("", context, True, ((question.text, question.answer),)))
        batch = encoder.batch([encoder.encode(doc) for doc in docs])
        hidden = model.model(inputs_embeds=embed(model, batch, noise=0.0, generator=None), use_cache=False)[0]
        guess = model.lm_head(hidden[:, :-1]).argmax(-1)
        wrong = (guess != batch.ids[:, 1:]) & (batch.weights[:, 1:] == 1.0)
        right[kind] = (~wrong.any(1)).tolist()
    return {kind: round(float(np.mean(values)), 3) for kind, values in right.items()}


def save_language(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """fp16 weights and the tokenizer, as transformers keeps any causal language model."""
    import copy

    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
