"""A crowd on loopback: nobody lost, nobody waiting for ever, memory flat, everybody served alike.

    python tests/benchmarks/serving_load.py [--clients 100] [--requests 2000] [--tokens 16] [--threads 2] [--model DIR]

Serves the shipped tiny LLaVA (or DIR) in a process of its own. Of the requests, each with a picture, half are
streams; every fifth client leaves, before or in the middle of its answer. Then 200 requests whose clients all give up,
and one fresh request, whose time and tokens are held against those of one on an idle server. Prints what became of
all, the server's memory over time, and how evenly clients were served. Ends with status 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from peers.served import Asked, Served, ask, free_port, request, served

CACHE = "workbench_model_cache_bytes"
PICTURES, WARM, FLAT = 200, 0.25, 1.05
"""Different pictures; the share of requests after which memory is looked at; how much it may grow from there."""


def make_model(folder: Path) -> Path:
    from workbench.model.export import write_folder
    from workbench.model.llava import build
    from workbench.recipe import Recipe

    return write_folder(build(Recipe.load("tiny-align").model, template="tiny", image_mode="square"), folder / "tiny")


def make_bodies(folder: Path, model: str, args: argparse.Namespace) -> list[bytes]:
    paths = []
    for number in range(PICTURES):
        noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(noise).resize((320, 240)).save(paths[-1], quality=90)
    rng = random.Random(0)
    asks = ("describe the image in detail.", "how many are there?", "what colour is the largest one?")
    bodies = []
    for number in range(args.requests):
        more = {"stream": True} if number % 2 else {}
        bodies.append(request(model, rng.choice(paths), f"{rng.choice(asks)} {number % 50}", args.tokens, **more))
    return bodies


class Crowd:
    """What every client met, in the order of the requests."""

    def __init__(self, side: Served, bodies: list[bytes], args: argparse.Namespace) -> None:
        self.side, self.bodies, self.args = side, bodies, args
        self.met: dict[int, str] = {}
        self.times: dict[int, list[float]] = {client: [] for client in range(args.clients)}
        self.memory: list[tuple[int, int, int]] = []

    async def run(self) -> None:
        waiting = iter(range(len(self.bodies)))
        limits = httpx.Limits(max_connections=self.args.clients)
        async with httpx.AsyncClient(base_url=self.side.url, timeout=600, limits=limits, trust_env=False) as http:

            async def client(me: int) -> None:
                for number in waiting:
                    self.met[number] = await self.one(http, number, me)
                    if len(self.met) % 50 == 0:
                        self.memory.append(await self._held(http))

            await asyncio.gather(*(client(me) for me in self.times))

    async def _held(self, http: httpx.AsyncClient) -> tuple[int, int, int]:
        """Requests so far, bytes of the server's memory, and those of its caches, which have bounds of their own."""
        kept = float(found(CACHE, (await http.get("/metrics")).text))
        return len(self.met), self.side.memory(), int(kept)

    async def one(self, http: httpx.AsyncClient, number: int, me: int) -> str:
        if number % 5 == 4:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ask(http, self.bodies[number]), random.Random(number).uniform(0.0, 1.0))
            return "left"
        for _ in range(50):
            answer = await ask(http, self.bodies[number])
            if answer.status != 429:
                self.times[me].append(answer.whole)
                return "answered" if answer.status == 200 else f"status {answer.status}"
            await asyncio.sleep(1)
        return "always busy"


async def given_up(side: Served, body: bytes, count: int) -> int:
    """How many of `count` clients gave up before their answer."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=side.url, timeout=600, limits=limits, trust_env=False) as http:
        tries = (asyncio.wait_for(ask(http, body), 0.5) for _ in range(count))
        return sum(isinstance(one, TimeoutError) for one in await asyncio.gather(*tries, return_exceptions=True))


async def fresh(side: Served, body: bytes) -> Asked:
    async with httpx.AsyncClient(base_url=side.url, timeout=600, trust_env=False) as http:
        return await ask(http, body)


def gauge(side: Served, name: str) -> float:
    text = httpx.get(f"{side.url}/metrics", trust_env=False).text
    return float(found(name, text))


def found(name: str, text: str) -> str:
    return re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]


def tokens_of(side: Served, body: bytes) -> tuple[float, float]:
    """Seconds for one request, and the tokens that the server wrote meanwhile beyond those of the request."""
    before = gauge(side, "workbench_model_tokens")
    answer = asyncio.run(fresh(side, body))
    return answer.whole, gauge(side, "workbench_model_tokens") - before - answer.completion_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, port = args.model or make_model(folder), free_port()
        command = [sys.executable, "-m", "workbench.cli", "serve", str(model), "--port", str(port), "--device", "cpu"]
        with served(command, port, model.name, folder / "log", args.threads) as side:
            broken = told(side, make_bodies(folder, model.name, args), args)
    sys.exit(broken and f"broken: {', '.join(broken)}")


def told(side: Served, bodies: list[bytes], args: argparse.Namespace) -> list[str]:
    """Measure and print; the promises that were broken."""
    idle = statistics.median(tokens_of(side, bodies[0])[0] for _ in range(5))
    crowd, began = Crowd(side, bodies, args), time.perf_counter()
    asyncio.run(crowd.run())
    took = time.perf_counter() - began
    met = Counter(crowd.met.values())
    print(f"{len(crowd.met)} of {len(bodies)} requests by {args.clients} clients in {took:.0f} s: {dict(met)}")
    warm = max(size - kept for count, size, kept in crowd.memory if count <= max(50, WARM * len(bodies)))
    most = max(size - kept for _, size, kept in crowd.memory)
    some = crowd.memory[:: max(1, len(crowd.memory) // 10)]
    steps = ", ".join(f"{size / 2**20:.0f} ({kept / 2**20:.0f})" for _, size, kept in some)
    print(f"memory MB (caches of it): {steps}; without caches at most {most / warm:.3f} of what it was warm")
    means = [statistics.mean(times) for times in crowd.times.values() if times]
    counts = [len(times) for times in crowd.times.values()]
    print(
        f"mean seconds, client by client: {min(means):.2f} to {max(means):.2f}; answers: {min(counts)} to {max(counts)}"
    )
    left = asyncio.run(given_up(side, bodies[0].replace(b'"max_tokens": %d' % args.tokens, b'"max_tokens": 400'), 200))
    _settled(side)
    after, strange = tokens_of(side, bodies[0])
    print(
        f"{left} of 200 gave up; one fresh request: {after:.3f} s (idle {idle:.3f} s), {strange:.0f} tokens of others"
    )
    promises = {
        "lost or failed": set(met) <= {"answered", "left"} and len(crowd.met) == len(bodies),
        "memory": most <= FLAT * warm,
        "fairness": max(means) <= 2 * statistics.median(means),
        "work left behind": strange == 0,
        "speed after": after <= 2 * idle + 0.05,
        "health": httpx.get(f"{side.url}/health", trust_env=False).status_code == 200,
    }
    return [name for name, kept in promises.items() if not kept]


def _settled(side: Served) -> None:
    end = time.monotonic() + 60
    while gauge(side, "workbench_running") + gauge(side, "workbench_waiting") and time.monotonic() < end:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
