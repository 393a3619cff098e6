"""Observe the fake server in a test: the messages that links published, and what happens to them."""

from __future__ import annotations

from typing import NamedTuple

from router_trio.protocol.headers import Headers
from router_trio.testing.frames import Publish
from router_trio.testing.streams import Stored, Stream


class PublishedMessage(NamedTuple):
    """A publish that the broker accepted from a link, for assertions."""

    subject: str
    headers: Headers
    payload: bytes


class Watch:
    """Observes a server, for assertions at each step. Its methods do nothing; a test overrides those that it needs."""

    def received(self, publish: Publish, now: float) -> None:
        """Called when a link has published a message."""

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        """Called when a stream has stored a message."""

    def refused(self, publish: Publish, why: str, now: float) -> None:
        """Called when a publish with a reply subject was refused."""

    def answered(self, kind: str) -> None:
        """Called when a link has sent an `ack` or a `nak` with a valid reply subject."""

    def ack_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Called when a consumer has accepted an ack."""

    def term_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        """Called when a consumer has accepted a term, which gives up a message."""
