"""How near the loop comes to what a teacher gives: answers in 500 ms, 64 in flight, so 128 a second at best.

    python tests/benchmarks/teacher_throughput.py [REQUESTS]

Every request carries a picture of its own, every reply is on the disk before it counts. The server is a process of its
own on the same machine. Prints JSON: replies a second, their share of the ideal, and the client's processor time.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from workbench.chat_model import SamplingOptions
from workbench.conversation import Conversation, Image, Message
from workbench.instruct.endpoints import Endpoint, Request
from workbench.instruct.loop import run
from workbench.instruct.parse import PAIRS
from workbench.instruct.replies import ReplyStore
from workbench.remote import RemoteModel

LATENCY, IN_FLIGHT = 0.5, 64
SERVER = Path(__file__).parents[1] / "teacher_server.py"
PICTURES = 200


def requests(count: int, folder: Path) -> Iterator[Request]:
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        PILImage.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    for number in range(count):
        text = f"Write a conversation about this image ({number})."
        picture = Image(f"{number % PICTURES}.png", width=96, height=96)
        asked = Conversation(str(number), (Message("system", ("You see an image.",)), Message("user", (picture, text))))
        yield Request(str(number), asked, SamplingOptions(max_tokens=200), PAIRS, 700)


def main(count: int = 3000) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, str(SERVER), "--latency", str(LATENCY)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = (server.stdout.readline() if server.stdout else "").strip()
            model = RemoteModel("teacher", url=url, open_image=lambda image: folder / image.path)
            with ReplyStore(folder / "replies.sqlite") as store:
                began, used = time.monotonic(), time.process_time()
                outcome = run(requests(count, folder), [Endpoint(model, concurrency=IN_FLIGHT)], store)
                seconds, used = time.monotonic() - began, time.process_time() - used
                kept = len(store)
        finally:
            server.kill()
    rate, ideal = kept / seconds, IN_FLIGHT / LATENCY
    told = {"replies": kept, "calls": outcome.calls, "seconds": round(seconds, 2), "per_second": round(rate, 1)}
    told |= {"ideal": ideal, "share_of_ideal": round(rate / ideal, 3), "client_cpu_seconds": round(used, 2)}
    print(json.dumps({**told, "machine": f"{platform.system()}, Python {platform.python_version()}"}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
