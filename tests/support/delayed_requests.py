"""Requests that a test answers, each when and as it likes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from router_trio.protocol import framing, headers

Respond = Callable[[str, bytes, dict[str, str]], Awaitable[bytes]]


class DelayedRequest:
    """Stands in for `requests.Request`, and for its event: waiting for it awaits the answer."""

    waits = True

    def __init__(self, subject: str, body: bytes, block: bytes, respond: Respond) -> None:
        self._asked = subject, body, dict(headers.decode(block))
        self._respond = respond
        self.answer: framing.RawMessage | None = None
        self.arrived = self

    async def wait(self) -> None:
        self.answer = framing.published(framing.publish(b"inbox", await self._respond(*self._asked)))

    def forget(self) -> None:
        """Do nothing: no answer arrives unless it is waited for."""

    def raise_refusal(self) -> None:
        """Do nothing: none is refused."""


class DelayedRequests:
    """Stands in for `requests.Requests`. A subclass defines how it responds."""

    too_many = 0

    def send(self, subject: bytes, body: bytes = b"", block: bytes = b"") -> DelayedRequest:
        return DelayedRequest(framing.text(subject), body, block, self.respond)

    async def ping(self) -> None:
        """Return at once."""

    async def respond(self, subject: str, body: bytes, fields: dict[str, str]) -> bytes:
        """Return the answer to a request."""
        raise NotImplementedError
