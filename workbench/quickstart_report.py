"""What the quickstart leaves to read: `report.json`, `report.html`, every answer, and the last lines in the terminal.

Knows: which figures go where. Does not know: how they were measured.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.conversation import Image
from workbench.resources import write_atomic
from workbench.run import Run

if TYPE_CHECKING:
    from workbench.data.dataset import Dataset
    from workbench.evaluation.task import Results

EXAMPLES = 10


def write_results(
    run: Run,
    dataset: Dataset,
    funnel: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Results],
    times: Sequence[tuple[str, float]],
    seconds: float,
) -> dict[str, Any]:
    """Write the report in both forms and every answer as JSON lines; returns what `report.json` says."""
    for name, results in scores.items():
        results.save(run.path / f"answers-{name}.jsonl")
    usable = dataset.images.filter(dataset.images["status"] == "ok")
    report = {
        **{f"accuracy_{name}": round(results.accuracy, 4) for name, results in scores.items()},
        "by_type": {name: results.by_type for name, results in scores.items()},
        "questions": len(scores["after"].rows),
        "seconds": round(seconds, 1),
        "seconds_by_step": {name: round(value, 1) for name, value in times},
        "funnel": list(funnel),
        "splits": dict(usable["split"].value_counts(sort=True).iter_rows()),
        "dataset": str(dataset.path),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": run.info.get("versions", {}),
    }
    write_atomic(run.path / "report.json", json.dumps(report, indent=1))
    _write_page(run, dataset, report, scores)
    return report


def summary(run: Run, report: Mapping[str, Any]) -> str:
    """The last lines a person sees: the figures, and what to type next."""
    figures = [f"{name} {report[f'accuracy_{name}']:.3f}" for name in ("before", "blind", "grey", "after")]
    lines = [
        "",
        f"{'   '.join(figures)}   on {report['questions']} held-out questions, {report['seconds']:.0f} s",
        f"report: {run.path / 'report.html'}",
        "",
        "Next:",
        *(f"  {command}" for command in next_commands(run, report)),
    ]
    return "\n".join(lines)


def next_commands(run: Run, report: Mapping[str, Any]) -> list[str]:
    """What to try with this run."""
    picture = report.get("example_image", "a.png")
    return [
        f"workbench chat {run.path} --image {picture}",
        f"workbench evaluate {run.path} {report['dataset']}",
        f"workbench export {run.path} {run.path.parent / 'llava-hf'} --as hf",
        "workbench quickstart --images FOLDER --out runs/mine",
        "workbench runs",
    ]


def _write_page(run: Run, dataset: Dataset, report: dict[str, Any], scores: Mapping[str, Results]) -> None:
    from workbench.report import write_report

    minutes = report["seconds"] / 60
    columns = ("before", "blind", "grey", "after")
    counts = dict(scores["after"].rows["type"].value_counts().iter_rows())
    types = [
        {
            "type": kind,
            "count": counts[kind],
            "values": [report["by_type"][column].get(kind, 0.0) for column in columns],
            "after": value,
        }
        for kind, value in report["by_type"]["after"].items()
    ]
    examples = _examples(dataset, scores)
    if examples:
        report["example_image"] = str(dataset.resolve(Image(examples[0]["image"], examples[0]["root"])))
    splits = ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())
    values = {
        "title": f"workbench quickstart: {dataset.name}",
        "subtitle": f"A LLaVA made in {minutes:.1f} minutes from {sum(report['splits'].values()):,} images.",
        "figures": _figures(report, minutes),
        "columns": columns,
        "types": types,
        "curves": [_curve(Run.open(run.path / stage), stage) for stage in ("align", "finetune")],
        "examples": examples,
        "funnel": report["funnel"],
        "splits": f"Images per split, with no duplicate on both sides: {splits}.",
        "times": list(report["seconds_by_step"].items()),
        "commands": "\n".join(next_commands(run, report)),
        "footer": "Every figure on this page was measured in this run; report.json and answers-*.jsonl hold them.",
    }
    write_report(run.path / "report.html", values)


def _figures(report: Mapping[str, Any], minutes: float) -> list[dict[str, str]]:
    gain = report["accuracy_after"] - report["accuracy_blind"]
    asked = f"of {report['questions']} held-out questions"
    return [
        {"name": "after", "value": f"{report['accuracy_after']:.3f}", "note": asked},
        {"name": "before", "value": f"{report['accuracy_before']:.3f}", "note": "fresh projector"},
        {"name": "blind", "value": f"{report['accuracy_blind']:.3f}", "note": "another image shown"},
        {"name": "gain from looking", "value": f"{gain:+.3f}", "note": "after minus blind"},
        {"name": "time", "value": f"{minutes:.1f} min", "note": f"{os.cpu_count()} CPU cores"},
    ]


def _curve(stage: Run, name: str) -> dict[str, Any]:
    from workbench.report import curve_svg

    lines = stage.metrics()
    loss = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    named = {"training": loss, "validation (orange)": held}
    ends = [f"{kind} ends at {line[-1][1]:.3f}" for kind, line in named.items() if line]
    return {"name": name, "svg": curve_svg({"train": loss, "validation": held}), "note": ", ".join(ends)}


def _examples(dataset: Dataset, scores: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Held-out images with answers before and after: types in turn, one question an image, chosen blind to answers."""
    from workbench.data.images import load_image
    from workbench.report import picture_source

    before = {row["id"]: row for row in scores["before"].rows.iter_rows(named=True)}
    shown: dict[str, dict[str, Any]] = {}
    for row in _types_in_turn(scores["after"].rows.sort("id").to_dicts()):
        if len(shown) < EXAMPLES and row["image"] not in shown:
            earlier = before[row["id"]]
            source = picture_source(load_image(dataset.resolve(Image(row["image"], row["root"]))))
            shown[row["image"]] = row | {
                "source": source,
                "after": row["answer"],
                "after_right": row["right"],
                "before": earlier["answer"],
                "before_right": earlier["right"],
            }
    return list(shown.values())


def _types_in_turn(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, taking the types in turn: the first of each type, then the second of each, ..."""
    place: dict[str, int] = {}
    ranked = []
    for row in rows:
        place[row["type"]] = place.get(row["type"], 0) + 1
        ranked.append((place[row["type"]], row["type"], row))
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]


def _processor() -> str:
    """The processor's name as the system tells it; empty where it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
