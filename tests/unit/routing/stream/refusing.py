"""Routes whose destination refuses, and what of their source arrived."""

from __future__ import annotations

from typing import Any

from router_trio.testing import FakeBroker
from tests.support.world import World, stream, to


def route(**source: Any) -> dict[str, Any]:
    """From `in.*` to the stream `OUT`."""
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", **source)


def remote(**source: Any) -> dict[str, Any]:
    """The same, to the stream of another connection."""
    to_edge = to("out.{{wildcard(1)}}", "edge", jetstream=True)
    return stream("IN", to_edge, connection="main", filter="in.*", **source)


def fill(broker: FakeBroker, subjects: str, count: int, *, first: int = 0) -> None:
    """Publish consecutive numbers, each to all of these subjects in turn."""
    for number in range(first, first + count):
        for subject in subjects:
            broker.publish(f"in.{subject}", b"%d" % number)


def arrived(w: World, subject: str, connection: str = "main") -> list[bytes]:
    """What the stream `OUT` holds of this subject, in order."""
    return [message.payload for message in w.brokers[connection].messages("OUT") if message.subject == f"out.{subject}"]
