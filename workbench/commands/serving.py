"""A model behind an address."""

from __future__ import annotations

import argparse

from workbench.commands.common import AddVerb, add_loading, add_model


def _serve(given: argparse.Namespace) -> None:
    from workbench.serving.run import serve

    serve(
        given.model,
        host=given.host,
        port=given.port,
        api_key=given.api_key,
        allow_remote_images=given.allow_remote_images,
        load=given.load,
        device=given.device,
        name=given.name,
        temperature=given.temperature,
        say=lambda line: print(line, flush=True),
    )


def add_verbs(verb: AddVerb) -> None:
    """The verbs of this module."""
    add = verb(
        "serve",
        _serve,
        "Answer over HTTP as OpenAI's chat completions do, for any client of theirs; on this machine unless told.",
        "serve runs/quickstart",
        "serve runs/quickstart --port 9000 --load 4bit",
        "serve runs/quickstart --host 0.0.0.0 --api-key 'a long secret'",
        "serve llava-hf/llava-1.5-7b-hf --allow-remote-images images.example.org upload.wikimedia.org",
    ).add_argument
    add_model(add)
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but this machine's needs a key (default: %(default)s)",
    )
    add("--port", type=int, default=8000, metavar="N", help="0 takes any free one (default: %(default)s)")
    add(
        "--api-key",
        action="append",
        metavar="KEY",
        help="needed by every request; several are fine (default: $WORKBENCH_API_KEY)",
    )
    more = "fetch images from https URLs of these domains (default: images come in requests only)"
    add("--allow-remote-images", nargs="+", default=[], metavar="DOMAIN", help=more)
    add("--name", help="what clients call the model (default: the name of its folder)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="for requests that name none (default: 0, the likeliest)",
    )
    add_loading(add)
