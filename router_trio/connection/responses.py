"""Sends answers to requests of other clients, and attributes the denials of these answers.

They are publishes without a fate: not in the outbox, and in no count. A server names a denied publish by its subject
alone, so the reply subject of an answer is remembered until a fence behind it is answered.
"""

from __future__ import annotations

from collections import Counter

from router_trio.link import Link


class Responses:
    """The answers of one connection that a server may still deny."""

    def __init__(self) -> None:
        self._sent: Counter[bytes] = Counter()
        self._denied: dict[bytes, str] = {}

    async def respond(self, link: Link, reply: bytes, payload: bytes) -> str | None:
        """Send an answer. Return None if the server has accepted it, else the words with which it denied it.

        Returns when a fence behind the answer is answered. Raises `LinkError`.
        """
        self._sent[reply] += 1
        try:
            link.respond(reply, payload)
            await link.fence()
            return self._denied.get(reply)
        finally:
            self._sent[reply] -= 1
            if not self._sent[reply]:
                del self._sent[reply]
                self._denied.pop(reply, None)

    def includes(self, reply: bytes) -> bool:
        """Return True if an answer to this reply subject may still be denied."""
        return reply in self._sent

    def denied(self, reply: bytes, detail: str) -> None:
        """Record that the server denied the answer to this reply subject."""
        self._denied[reply] = detail
