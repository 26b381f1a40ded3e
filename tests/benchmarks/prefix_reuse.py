"""What a second question about an image costs, and a second turn, up to their first token; beside `transformers serve`.

    python tests/benchmarks/prefix_reuse.py [--rounds 9] [--threads 1] [--no-peer]

Makes a random LLaVA (59 million parameters, 576 image tokens, float32). Each round shows a new picture, a PNG file, to
the engine, in this process, and to `transformers serve`, in its own: a first question, another about the same picture,
and a second turn after an answer of 16 tokens; and once more a second turn, after a second in which the engine gave its
batch's memory back. One new token each, so that the time is that to the first. Prints medians of processor and wall
seconds, and their share of the first question's. The first round warms both and is not counted.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import platform
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.material import Shape, make_model
from peers.reuse import KINDS, Ours, Side, Spent, Turns, medians, one_round, picture
from peers.served import Served, free_port, served

from workbench.chat_model import SamplingOptions


class Theirs:
    """`transformers serve` in its own process."""

    def __init__(self, side: Served) -> None:
        self.side = side

    def cpu(self) -> float:
        return self.side.cpu()

    def ask(self, number: int, text: str, before: Turns, options: SamplingOptions) -> str:
        uri = "data:image/png;base64," + base64.b64encode(picture(number)).decode()
        messages: list[dict[str, Any]] = []
        for said, answer in [*before, (text, "")]:
            messages.append({"role": "user", "content": [{"type": "text", "text": said}]})
            messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else []
        messages[0]["content"].insert(0, {"type": "image_url", "image_url": {"url": uri}})
        body = {"model": self.side.model, "messages": messages, "max_tokens": options.max_tokens, "temperature": 0}
        told = self._post("/v1/chat/completions", body)
        return told["choices"][0]["message"]["content"] or ""

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        head = {"content-type": "application/json"}
        request = urllib.request.Request(self.side.url + path, json.dumps(body).encode(), head)
        with urllib.request.urlopen(request, timeout=600) as got:
            return json.loads(got.read())


@contextlib.contextmanager
def serving(folder: Path, threads: int) -> Iterator[Theirs]:
    port = free_port()
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", str(folder), "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with served(command, port, str(folder), folder.parent / "log", threads) as side:
        yield Theirs(side)


def ours(folder: Path, threads: int, rounds: int) -> Ours:
    import torch

    from workbench.model import llava

    torch.set_num_threads(threads)
    loaded = llava.load(folder, template="v1", image_mode="pad", device="cpu")
    return Ours(loaded, folder.parent, rounds + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place, "model")
        size = make_model(folder, Shape())
        sides: dict[str, Side] = {"workbench": ours(folder, args.threads, args.rounds)}
        if not args.no_peer:
            sides["transformers serve"] = stack.enter_context(serving(folder, args.threads))
        spent: dict[str, Spent] = {name: {kind: [] for kind in KINDS} for name in sides}
        for number in range(args.rounds + 1):
            for name, side in sides.items():
                one_round(side, number, spent[name])
    kind = platform.processor() or platform.machine()
    print(f"{size / 1e6:.0f} M parameters, {Shape().image_tokens} image tokens, {args.rounds} rounds, "
          f"{args.threads} thread(s), {kind}\n\n|  |  | processor s | of the first | wall s | of the first |\n"
          "|---|---|---|---|---|---|")  # fmt: skip
    for name, kinds in spent.items():
        for kind, ((used, wall), (of_used, of_wall)) in medians(kinds).items():
            print(f"| {name} | {kind} | {used:.3f} | {of_used:.3f} | {wall:.3f} | {of_wall:.3f} |")


if __name__ == "__main__":
    main()
