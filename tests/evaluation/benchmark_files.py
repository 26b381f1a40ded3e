"""Benchmark files in the published shapes, made from scenes: what is in each picture is known exactly."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from workbench.data.scenes import COLORS, SHAPES, Scene, draw_scene, sample_scene

LETTERS = "ABCD"


def scenes(count: int, seed: int = 0) -> list[tuple[Scene, PILImage.Image]]:
    rng = np.random.default_rng(seed)
    drawn = [sample_scene(rng) for _ in range(count)]
    return [(scene, draw_scene(scene, rng)) for scene in drawn]


def there(scene: Scene) -> set[str]:
    return {f"{thing.color} {thing.shape}" for thing in scene.objects}


def save(folder: Path, name: str, picture: PILImage.Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name)


def pope(folder: Path, count: int = 4, questions: int = 6) -> None:
    """coco_pope_{random,popular,adversarial}.json as JSON lines, ids from 1 in each, and COCO's file names."""
    drawn = scenes(count)
    every = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    rng = np.random.default_rng(1)
    for split in ("random", "popular", "adversarial"):
        lines = []
        for number, (scene, picture) in enumerate(drawn):
            name = f"COCO_val2014_{number + 1:012d}.jpg"
            save(folder / "val2014", name, picture)
            held = sorted(there(scene))
            for place in range(questions):
                yes = place % 2 == 0
                asked = (
                    held[place // 2 % len(held)] if yes else str(rng.choice([one for one in every if one not in held]))
                )
                text = f"Is there a {asked} in the image?"
                row = {"question_id": len(lines) + 1, "image": name, "text": text, "label": "yes" if yes else "no"}
                lines.append(json.dumps(row))
        (folder / f"coco_pope_{split}.json").write_text("\n".join(lines) + "\n")


def mme(folder: Path, count: int = 4) -> None:
    """MME_Benchmark_release_version: a folder per task, a text file and a picture of one name."""
    for task in ("existence", "count"):
        for number, (scene, picture) in enumerate(scenes(count, seed=2)):
            save(folder / task, f"{number:04d}.png", picture)
            if task == "existence":
                asked = (
                    f"Is there a {sorted(there(scene))[0]} in this image?",
                    "Is there a purple elephant in this image?",
                )
            else:
                right = len(scene.objects)
                asked = (f"Are there {right} things in this image?", f"Are there {right + 1} things in this image?")
            lines = [
                f"{question} Please answer yes or no.\t{answer}"
                for question, answer in zip(asked, ("Yes", "No"), strict=True)
            ]
            (folder / task / f"{number:04d}.txt").write_text("\n".join(lines) + "\n")


def seedbench(folder: Path, count: int = 6) -> None:
    """SEED-Bench.json with its question types, and pictures by data_id."""
    rows = []
    for number, (scene, picture) in enumerate(scenes(count, seed=3)):
        save(folder / "SEED-Bench-image", f"{number}_{number}.jpg", picture)
        right = scene.objects[0].color
        choices = [right, *[color for color in COLORS if color not in {thing.color for thing in scene.objects}][:3]]
        turn = number % 4
        choices = choices[-turn:] + choices[:-turn] if turn else choices
        row = {f"choice_{letter.lower()}": choice for letter, choice in zip(LETTERS, choices, strict=True)}
        rows.append(row | {
            "answer": LETTERS[choices.index(right)], "data_id": f"{number}_{number}", "data_type": "image",
            "question": f"What color is the {scene.objects[0].shape}?", "question_id": f"{101669 + number}",
            "question_type_id": 1 + number % 2,
        })  # fmt: skip
    about = {"Scene Understanding": 1, "Instance Identity": 2}
    (folder / "SEED-Bench.json").write_text(json.dumps({"question_type": about, "questions": rows}))


def mmbench(folder: Path, count: int = 4, *, chinese: bool = False) -> Path:
    """A TSV with a picture in base64 in every row, and every question once for each rotation of its options."""
    heads = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "split", "image")
    lines = ["\t".join(heads)]
    for number, (scene, picture) in enumerate(scenes(count, seed=4)):
        held = io.BytesIO()
        picture.resize((160, 160)).save(held, "PNG")
        image = base64.b64encode(held.getvalue()).decode()
        right = scene.objects[0].shape
        choices = [right, *[shape for shape in SHAPES if shape not in {thing.shape for thing in scene.objects}][:3]]
        hint = "Look at the shapes." if number % 2 else ""
        for turn in range(4):
            turned = choices[turn:] + choices[:turn]
            cells = [str(number + 1_000_000 * turn), "What shape is in the picture?", hint, *turned]
            cells += [LETTERS[turned.index(right)], f"kind_{number % 2}", "coarse", "dev", image]
            lines.append("\t".join(cells))
    path = folder / ("mmbench_dev_cn_20231003.tsv" if chinese else "mmbench_dev_20230712.tsv")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
