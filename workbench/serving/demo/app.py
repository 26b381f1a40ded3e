"""The start of an exported demo: its model, its page, its examples.

Knows: the folder it lies in. Does not know: workbench: this file is copied into exported demos.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported


def main() -> None:
    """Serve the demo on this machine until Ctrl-C; `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` say otherwise."""
    _parser().parse_args()
    from .answerer import Answerer  # before Gradio: on ZeroGPU nothing may touch the GPU before it
    from .feedback import Feedback
    from .page import build, launch

    folder = Path(__file__).resolve().parents[1]
    model = Answerer(folder)
    examples = [(one["question"], folder / one["picture"]) for one in model.about["examples"]]
    feedback = Feedback(os.environ.get("DEMO_FEEDBACK") or folder / "feedback", shown="feedback/feedback.jsonl")
    page = build([model], title=model.about["title"], about=model.about["about"], feedback=feedback, examples=examples)
    url = launch(page, block=False)
    print(f"demo of {model.name} at {url}", flush=True)
    with suppress(KeyboardInterrupt):
        page.block_thread()


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="app.py",
        description="Serve this demo on this machine until Ctrl-C: python app.py prints its address.",
        epilog="Variables: GRADIO_SERVER_NAME, the address to listen on (0.0.0.0: every one); GRADIO_SERVER_PORT; "
        "DEMO_FEEDBACK, the folder of votes and flags (default: feedback, beside app.py).",
    )
