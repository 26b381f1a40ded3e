"""What lmms-eval's tasks call for a row's picture; in its process."""

from __future__ import annotations

from typing import Any

from PIL import Image


def opened(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(doc["path"]).convert("RGB")]
