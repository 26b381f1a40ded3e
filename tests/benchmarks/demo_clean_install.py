"""An exported demo on a fresh machine, as its README says: a new environment, pip, app.py, one question in a browser.

    python tests/benchmarks/demo_clean_install.py runs/quickstart /tmp/clean

Prints how long each step took, the size of the environment, and whether the answer is the engine's. Needs a package
registry and Chromium. A test does the same with the packages that are there already.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image
from workbench.inference.opening import open_model
from workbench.resources import size_of
from workbench.serving.export_demo import export_demo

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from small_run import answers, ask, page_of, wait_until_done  # noqa: E402

QUESTION = "Describe the picture in detail."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("place", type=Path, help="a new folder")
    parser.add_argument("--weights", default="merged", choices=("merged", "adapter"))
    given = parser.parse_args()
    clock = time.monotonic()

    def took(what: str) -> None:
        nonlocal clock
        print(f"{what}: {time.monotonic() - clock:.0f} s", flush=True)
        clock = time.monotonic()

    folder = export_demo(given.run, given.place / "demo", weights=given.weights)
    took("export")
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WORKBENCH"))}
    python = folder / ".venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], env=alone, check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=folder, env=alone, check=True)
    took("pip install -r requirements.txt")
    print(f"the environment: {size_of(folder / '.venv') / 2**30:.1f} GB")
    assert subprocess.run([python, "-c", "import workbench"], cwd=folder, env=alone, capture_output=True).returncode
    process = subprocess.Popen([python, "-u", "app.py"], cwd=folder, env=alone, stdout=subprocess.PIPE, text=True)
    try:
        url = next(line for line in process.stdout or () if " at http" in line).split(" at ")[1].strip()
        took("start of app.py")
        picture = next((folder / "examples").iterdir())
        with page_of(url) as (page, asked):
            ask(page, QUESTION, picture)
            wait_until_done(page, 1)
            said = answers(page)[0]
    finally:
        process.terminate()
        process.wait(60)
    took("one question in Chromium")
    conversation = Conversation("asked", ()).add("user", Image(str(picture)), QUESTION)
    wanted = open_model(given.run).reply(conversation, SamplingOptions(max_tokens=256)).text.strip()
    outside = [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    print(
        f"answer: {said!r}; the engine's: {'the same' if said == wanted else repr(wanted)}; outside requests: {outside}"
    )
    sys.exit(said != wanted or bool(outside))


if __name__ == "__main__":
    main()
