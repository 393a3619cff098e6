"""Routes to a destination that refuses, and the messages that arrived there."""

from __future__ import annotations

from typing import Any

from tests.support.world import World, stream, to


def route(**source: Any) -> dict[str, Any]:
    """Return a route from `in.*` to the stream `OUT`."""
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", **source)


def remote(**source: Any) -> dict[str, Any]:
    """Return a route from `in.*` to the stream `OUT` of another connection."""
    to_edge = to("out.{{wildcard(1)}}", "edge", jetstream=True)
    return stream("IN", to_edge, connection="main", filter="in.*", **source)


def arrived(w: World, subject: str, connection: str = "main") -> list[bytes]:
    """Return the payloads of this subject in the stream `OUT`, in order."""
    return [message.payload for message in w.brokers[connection].messages("OUT") if message.subject == f"out.{subject}"]
