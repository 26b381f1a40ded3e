"""What one answer says, by which rule, and what it earns: the same rules as over whole files, one row at a time.

Knows: for each benchmark how an answer is read and when it cannot change any more; the scorers of a person's own sets;
how kept rows become the questions that the rules count.
Does not know: where rows come from, who answers, intervals (`scores`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.evaluation import fields, letters, near, open_answers, rules_free, scorers, tally, vqa_text, yes_no
from workbench.evaluation.benchmarks import BENCHMARKS, Benchmark
from workbench.evaluation.matching import Item
from workbench.evaluation.options import Reader, letter, options_of
from workbench.evaluation.tally import Tally, texts

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Read:
    """What a rule made of an answer."""

    said: str | None
    """None: the rule cannot read it."""
    rule: str
    earned: float
    """From 0 to 1."""


class Rules(Protocol):
    """How answers to a set of questions are read and counted."""

    @property
    def name(self) -> str: ...

    @property
    def measure(self) -> str:
        """What the score is, in words."""

    def read(self, answer: str, row: Row) -> Read:
        """What `answer` says and earns; `row` has the reference and what else is known of the question."""

    def settled(self, start: str) -> bool:
        """Whether no answer that begins with `start` is read differently from it."""

    def count(self, rows: Sequence[Row], about: Mapping[str, Any]) -> Tally:
        """The score of kept rows. Rows without an answer earn nothing."""


@dataclass(frozen=True)
class OwnRules:
    """A person's own questions: right or wrong by one of `scorers.SCORERS`."""

    name: str
    measure: str = "right"

    def read(self, answer: str, row: Row) -> Read:
        said = scorers.normalise(answer) if self.name == "normalised" else answer.strip()
        return Read(said or None, self.name, float(scorers.SCORERS[self.name](answer, str(row["reference"]))))

    def settled(self, start: str) -> bool:
        return False

    def count(self, rows: Sequence[Row], about: Mapping[str, Any]) -> Tally:
        marked = [(item_of(row, ()), float(row["earned"])) for row in rows]
        kinds = {row["id"]: row["type"] for row in rows}
        parts = tally.by_kind(marked, lambda item: kinds[str(item.identity)])
        return tally.tally(marked, parts, sum(not row["said"] and not row["error"] for row in rows))


@dataclass(frozen=True)
class JudgeRules(OwnRules):
    """A person's own questions, whose answers a model judges once all are there (`private`)."""

    name: str = "judge"
    measure: str = "by a judge"

    def read(self, answer: str, row: Row) -> Read:
        return Read(answer.strip() or None, "not judged yet", 0.0)


@dataclass(frozen=True)
class BenchmarkRules:
    """A benchmark's own rules."""

    benchmark: Benchmark

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def measure(self) -> str:
        return self.benchmark.measure

    def read(self, answer: str, row: Row) -> Read:
        return _READ[self.name](answer, item_of(row, self.benchmark.fields))

    def settled(self, start: str) -> bool:
        return _SETTLED.get(self.name, _never)(start)

    def count(self, rows: Sequence[Row], about: Mapping[str, Any]) -> Tally:
        return self.benchmark.rule([item_of(row, self.benchmark.fields) for row in rows], about)


def rules(name: str) -> Rules:
    """The rules of a benchmark or of a scorer, by name."""
    if name == JudgeRules.name:
        return JudgeRules()
    return BenchmarkRules(BENCHMARKS[name]) if name in BENCHMARKS else OwnRules(name)


def item_of(row: Row, names: Sequence[str]) -> Item:
    """A kept row as the rules take it. A row that failed counts as asked and wrong, one not asked as not there."""
    about = {"id": row["id"], **(row.get("about") or {})}
    answer = row.get("answer")
    failed = answer is None and bool(row.get("error"))
    return Item("" if failed else answer, fields.reference(about, names), about, {}, here=failed or answer is not None)


# --- reading, per benchmark -----------------------------------------------------------------------------------------


def _choice(reader: Reader, rule: str) -> Callable[[str, Item], Read]:
    def read(answer: str, item: Item) -> Read:
        options = options_of(item)
        said = reader(answer, options)
        return Read(said, rule, float(said is not None and said == letter(item, options)))

    return read


def _free(earned: Callable[[str, Item], float], rule: str, say: Callable[[str], str]) -> Callable[[str, Item], Read]:
    return lambda answer, item: Read(say(answer) or None, rule, earned(answer, item))


def _pope(answer: str, item: Item) -> Read:
    said, read = yes_no.pope(answer.strip())
    right = (fields.plain(item.reference) or "").strip().lower().rstrip(".") == "yes"
    rule = "no or not in the first sentence is no, else yes" if read else "neither yes nor no: POPE takes it for yes"
    return Read(("yes" if said else "no") if read else None, rule, float(bool(answer.strip()) and said == right))


def _mme(answer: str, item: Item) -> Read:
    said = yes_no.mme(answer)
    right = (fields.plain(item.reference) or "").strip().lower().rstrip(".")
    return Read(said, "yes or no in the first four characters", float(said == right))


def _mmmu(answer: str, item: Item) -> Read:
    if str(item.about.get("question_type")) == "open":
        bare = answer.strip()
        return Read(
            bare or None, "MMMU's open answers", float(bool(bare) and open_answers.right(bare, texts(item.reference)))
        )
    return _choice(letters.mmmu, "(X), X, or an option's text")(answer, item)


def _refcoco(answer: str, item: Item) -> Read:
    box = near.box(answer)
    said = None if box is None else ", ".join(f"{edge:g}" for edge in box)
    return Read(said, "IoU of 0.5 or more", float(rules_free.overlap(answer, item) >= 0.5))


_READ: dict[str, Callable[[str, Item], Read]] = {
    "seedbench": _choice(letters.exact, "the letter alone"),
    "mmbench": _choice(letters.matched, "the only letter, or the only option"),
    "scienceqa": _choice(letters.science, "X, X. ..., or The answer is X."),
    "mmmu": _mmmu,
    "pope": _pope,
    "mme": _mme,
    "vqa": _free(rules_free.soft_vqa, "VQA soft accuracy", vqa_text.vqa),
    "textvqa": _free(rules_free.soft_textvqa, "TextVQA soft accuracy", vqa_text.textvqa),
    "vizwiz": _free(rules_free.soft_textvqa, "TextVQA soft accuracy", vqa_text.textvqa),
    "gqa": _free(rules_free.same_gqa, "equal words", vqa_text.gqa),
    "docvqa": _free(rules_free.anls, "ANLS", str.strip),
    "chartqa": _free(rules_free.relaxed, "relaxed accuracy", str.strip),
    "refcoco": _refcoco,
}


# --- when an answer cannot change any more --------------------------------------------------------------------------


def _never(start: str) -> bool:
    return False


def _settled_mme(start: str) -> bool:
    """Four characters, or yes or no among fewer: both have no room in four."""
    return len(start.lstrip()) >= 4 or yes_no.mme(start) is not None


def _settled_pope(start: str) -> bool:
    """A no that is a whole word, or the end of the first sentence after a yes."""
    sentence, stop, _ = start.lstrip().partition(".")
    words = sentence.replace(",", "").split(" ")
    whole = words if stop else words[:-1]
    return bool({"No", "not", "no"} & set(whole)) or bool(stop and "yes" in sentence.lower())


_SETTLED: dict[str, Callable[[str], bool]] = {"mme": _settled_mme, "pope": _settled_pope}


def by_item(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the question they are forms of, in their order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["item"]].append(row)
    return dict(groups)
