"""Real scans through the quickstart: scikit-learn's 1,797 handwritten digits as class folders.

    python tests/benchmarks/digits.py [OUT]

Prints the held-out accuracy of "Which digit is this?", with the ten to choose from listed in random order, before,
after and blind, and the seconds it took.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from workbench.quickstart import quickstart


def export_digits(folder: Path) -> None:
    """Each 8 x 8 scan as a PNG file in the folder of its class."""
    digits = load_digits()
    for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray((scan * 255 / 16).round().astype(np.uint8)).save(target / f"{number:04d}.png")


def main(out: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "digits"
        export_digits(folder)
        run = quickstart(out or Path(temporary) / "run", images=folder, question="Which digit is this?")
        report = json.loads((run.path / "report.json").read_text())
    keys = ("accuracy_before", "accuracy_after", "accuracy_blind", "accuracy_grey", "questions", "seconds", "machine")
    print(json.dumps({key: report[key] for key in keys}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
