"""Watch the fake server in a test: what it took from links, and what happens there."""

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
    """Hears what happens at a server, for assertions at each step. Does nothing; a test overrides what it looks at."""

    def received(self, publish: Publish, now: float) -> None:
        """Called when a publish came from a link."""

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        """Called when a stream took a message."""

    def refused(self, publish: Publish, why: str, now: float) -> None:
        """Called when a publish that wanted an answer was not taken."""

    def answered(self, kind: str) -> None:
        """Called when an `ack` or a `nak` came from a link, and was not refused."""

    def ack_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Called when a consumer took an ack."""

    def term_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Called when a consumer was told that a message is given up."""
