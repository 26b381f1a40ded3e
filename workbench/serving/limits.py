"""What a server takes on, and when it gives up: every bound in one place.

Knows: sizes, counts and seconds, with the reason for each. Does not know: who keeps to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.data.images import Limits as ImageLimits


@dataclass(frozen=True)
class Limits:
    """The defaults suit one model on one machine; a request beyond any of them is refused with a clear error."""

    slots: int = 64
    """Answers being written at once; a request with `n` takes that many."""
    waiting: int = 256
    """Requests that wait for a slot; a further one gets 429 and is told when to come back."""
    queue_seconds: float = 300.0
    """How long a request waits for a slot before it gets 503."""
    answer_seconds: float = 600.0
    """How long one request is written at most, from the moment it has its slot."""
    max_tokens: int = 1024
    """Tokens of an answer where the request does not say."""
    choices: int = 8
    """The largest `n`."""

    body_bytes: int = 32 * 2**20
    bodies_bytes: int = 512 * 2**20
    """All bodies that are held at one time."""
    body_seconds: float = 60.0
    """For a whole body."""
    gap_seconds: float = 10.0
    """Between two parts of a body."""
    header_bytes: int = 32 * 2**10
    header_seconds: float = 10.0
    """From the first byte of a request, or from connecting, to the end of its headers."""
    idle_seconds: float = 30.0
    """How long a connection is kept between two requests."""
    write_seconds: float = 30.0
    """How long a client may leave its answer unread before the connection is cut."""
    connections: int = 1024

    images: int = 16
    """In one request."""
    image: ImageLimits = field(default_factory=lambda: ImageLimits(pixels=50_000_000, bytes=20 * 2**20))
    pixels: int = 100_000_000
    """Of all images of one request together."""
    video_seconds: float = 20.0
    """For finding the frames of a video."""
    schema_characters: int = 32_000
    """Of a JSON schema that an answer has to follow."""
    schema_depth: int = 32
    health_seconds: float = 60.0
    """A model that has work and writes nothing for so long is not healthy."""
    grace_seconds: float = 30.0
    """What answers get to end when the server is stopped."""
