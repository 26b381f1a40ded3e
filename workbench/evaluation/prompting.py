"""What a benchmark's row asks, word for word as LLaVA's evaluation asks it.

Knows: hints, options as lines, the line after the question, the answers there are to choose from.
Does not know: files, pictures, how an answer is read.

Source: haotian-liu/LLaVA c121f04, llava/eval/model_vqa_mmbench.py, model_vqa_science.py, model_vqa_loader.py with
scripts/convert_sqa_to_llava_base_prompt.py; MMMU's mmmu/configs/llava1.5.yaml and utils/data_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation import fields
from workbench.evaluation.benchmarks import LETTER, SHORT, Benchmark

PROMPTS = ("llava", "question")
"""As LLaVA's evaluation, or the question and its options alone."""
LETTER_CN = "请直接回答选项字母。"
CHOICE = ("seedbench", "mmbench", "scienceqa", "mmmu")
YES_NO = ("pope", "mme")
_MME = re.compile(r"\s*Please answer yes or no\.?\s*", re.IGNORECASE)
_EXPRESSIONS = ("expression", "sentence", "sent", "caption", "phrase", "text", "question")


def prompt(
    benchmark: Benchmark, row: Mapping[str, Any], options: Mapping[str, str], prompts: str, chinese: bool
) -> str:
    """The text of the question, without its picture. A text that already has the line after it is sent as it is."""
    asks = _asks(benchmark.name, row, options)
    if benchmark.name == "refcoco":
        return f"{benchmark.suffix} {asks}" if prompts == "llava" else asks
    suffix = LETTER_CN if chinese else benchmark.suffix
    if prompts != "llava" or suffix in asks:
        return asks
    if benchmark.name == "mmmu":
        return f"{asks}\n\n{LETTER if options else SHORT}"
    tokens = row.get("ocr_tokens") if benchmark.name == "textvqa" else None
    read = f"Reference OCR token: {', '.join(map(str, tokens))}" if isinstance(tokens, list) and tokens else ""
    return "\n".join(filter(None, (asks, read, suffix)))


def _asks(name: str, row: Mapping[str, Any], options: Mapping[str, str]) -> str:
    question = _written(row)
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    if name == "mme":
        return _MME.sub("", question) if SHORT not in question else question
    if name == "mmbench":
        return "\n".join([*_hint(row), question, *lines])
    if name == "seedbench":
        return "\n".join([question, *(lines if lines and lines[0] not in question else [])])
    if name == "scienceqa" and "Options:" not in question:
        listed = " ".join(f"({letter}) {text}" for letter, text in options.items())
        context = " ".join(_hint(row)).strip() or "N/A"
        return f"Context: {context}\nQuestion: {question}\nOptions: {listed}".replace("  ", " ").strip()
    if name == "mmmu":
        return "\n\n".join(
            [question, *(["".join(f"({letter}) {text}\n" for letter, text in options.items())] * bool(options))]
        )
    return question


def _written(row: Mapping[str, Any]) -> str:
    """The question as the row writes it; LLaVA takes the picture's mark out of it."""
    names = ("question", "query", "text", "prompt") if "question" in row else ("text", "query", "prompt")
    found = fields.plain(fields.first(row, names)) or fields.plain(fields.first(row, _EXPRESSIONS)) or ""
    return found.replace("<image>", "").strip()


def _hint(row: Mapping[str, Any]) -> list[str]:
    found = fields.plain(row.get("hint"))
    return [found] if found and found.lower() not in ("nan", "none") else []


def expressions(row: Mapping[str, Any]) -> Sequence[str]:
    """The sentences that describe a RefCOCO row's region; each is a question of its own."""
    several = row.get("sentences") or (row.get("answer") if isinstance(row.get("answer"), list) else None)
    if isinstance(several, list) and several:
        return [str(fields.first(one, ("sent", "raw")) if isinstance(one, dict) else one) for one in several]
    return [_written(row)]


def candidates(name: str, options: Mapping[str, str]) -> list[str]:
    """The answers there are to choose from; none where any text may come."""
    return list(options) if name in CHOICE else ["Yes", "No"] if name in YES_NO else []
