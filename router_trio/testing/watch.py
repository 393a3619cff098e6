"""What a test sees of the fake server: what it took from links, and what happens there."""

from __future__ import annotations

from typing import NamedTuple

from router_trio.protocol.headers import Headers
from router_trio.testing.frames import Publish
from router_trio.testing.streams import Stored, Stream


class PublishedMessage(NamedTuple):
    """A publish that the broker took from a link, for assertions."""

    subject: str
    headers: Headers
    payload: bytes


class Watch:
    """Told what happens at a server, for assertions at each step. Nothing here; a test overrides what it looks at."""

    def received(self, publish: Publish, now: float) -> None:
        """A publish came from a link."""

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        """A stream took a message."""

    def refused(self, publish: Publish, why: str, now: float) -> None:
        """A publish that wanted an answer was not taken."""

    def answered(self, kind: str) -> None:
        """An answer to a delivery came from a link, an `ack` or a `nak`, and was not refused."""

    def ack_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """A consumer took an ack."""

    def term_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """A consumer was told that a message is given up."""
