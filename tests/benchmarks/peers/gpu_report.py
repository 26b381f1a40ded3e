"""The results of `gpu.py` as lines and, for each model, a table in Markdown.

Knows: names of results and what is in each. Does not know: how anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Told = dict[str, Any]
LOADS = ("bf16", "4bit")


def report(results: dict[str, Told]) -> str:
    """Device and date, the comparison line by line, then a table for each model and the shards."""
    keys = [tuple(name.split(" / ")) for name in results]
    lines = [_device(results["peak"])] if "device" in results.get("peak", {}) else []
    for key in keys:
        told = results[" / ".join(key)]
        if key[0] == "attention" and "error" not in told:
            ways = [f"{way} {held['ms']:.2f}" if "ms" in held else f"{way} -" for way, held in told.items()]
            lines.append(f"attention of {key[1]}, ms forward and backward: {', '.join(ways)}")
        elif "error" in told:
            lines.append(f"{' / '.join(key):38} {(told['error'].splitlines() or ['failed'])[-1]}")
        elif "seconds" in told:
            lines.append(_compared(" / ".join(key), told, results.get("peak", {})))
    for model in dict.fromkeys(key[1] for key in keys if key[0] == "house"):
        lines += ["", *table(model, results)]
    return "\n".join([*lines, *_shards(results)])


def table(model: str, results: dict[str, Told]) -> list[str]:
    """A column for each number format; what did not fit is told beneath, in the plan's words."""
    lines, notes = [f"| {model} | {' | '.join(LOADS)} |", f"|---|{'---|' * len(LOADS)}"], []
    for label, kind, cell in ROWS:
        found = [results.get(f"house / {model} / {load} / {kind}", {}) for load in LOADS]
        lines.append(f"| {label} | {' | '.join(_cell(told, cell) for told in found)} |")
    for load in LOADS:
        for kind in ("chat", "align", "finetune"):
            told = results.get(f"house / {model} / {load} / {kind}", {})
            notes += [f"{load}, {kind}: {told['skipped']}"] if "skipped" in told else []
    return [*lines, *([""] if notes else []), *notes]


def _cell(told: Told, cell: Callable[[Told], str]) -> str:
    if "skipped" in told:
        return "does not fit"
    return "failed" if "error" in told else cell(told) if told else "-"


def _memory(told: Told) -> str:
    return f"{told['foreseen_gb']:.1f} / {told['measured_gb']:.1f} ({told['error_of_plan']:+.1%})"


def _speed(told: Told) -> str:
    return f"{told['tokens_per_s']:,.1f}" if told["tokens_per_s"] else "-"


def _second_step(told: Told) -> str:
    return f"{told['step_s'][-1]:.2f} s, {told['tokens_per_s']:,.0f} tokens/s"


def _shares(told: Told) -> str:
    return ", ".join(f"{told['shares'][kind]:.3f}" for kind in ("second question", "second turn"))


ROWS: tuple[tuple[str, str, Callable[[Told], str]], ...] = (
    ("made on the device", "chat", lambda told: f"{told['made_s']:.1f} s, {told['held_gb']:.1f} GB held"),
    ("first token", "chat", lambda told: f"{told['first_question_s']:.3f} s"),
    ("answer, tokens/s", "chat", _speed),
    ("second question, second turn: share of the first's time", "chat", _shares),
    ("answer, GB foreseen / measured", "chat", _memory),
    ("align, second step", "align", _second_step),
    ("align, GB foreseen / measured", "align", _memory),
    ("finetune, second step", "finetune", _second_step),
    ("finetune, GB foreseen / measured", "finetune", _memory),
)
"""(label, measurement, what is told of it)."""


def _device(peak: Told) -> str:
    told = f"{peak['device']}: {peak['measured'] / 1e12:.3g} TFLOP/s in a plain matrix multiplication"
    if "date" in peak:
        told += f"; {peak['count']} such, {peak['memory_gb']:.1f} GB each; torch {peak['torch']}; {peak['date']}"
    return told


def _compared(name: str, told: Told, peak: Told) -> str:
    """A side of the comparison of trainers."""
    line = f"{name:38} {told['samples_per_s']:8.2f} samples/s {told['tokens_per_s']:10,.0f} tokens/s"
    if "flops" in told and peak.get("measured"):
        speed = told["flops"] / told["seconds"]
        line += f"  {speed / peak['measured']:.0%} of measured peak"
        line += f", {speed / peak['nominal']:.0%} of nominal" if peak.get("nominal") else ""
    return line + (f"  peak {told['peak_gb']:.1f} GB" if "peak_gb" in told else "")


def _shards(results: dict[str, Told]) -> list[str]:
    lines = []
    for name, told in results.items():
        if not name.startswith("shards / ") or "error" in told:
            continue
        model = name.removeprefix("shards / ")
        found = told.get("skipped") or f"{_second_step(told)}; GB of each, foreseen / measured: {_memory(told)}"
        among = f" among {told['processes']}" if "processes" in told else ""
        lines += ["", f"{model} in shards{among}: {found}"]
    return lines
