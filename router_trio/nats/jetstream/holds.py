"""The requests by which the leads of standby consumers are kept on one link, and their answers.

A request with the pin keeps the lead, whatever its result. It has no room for a message and does not wait, so that the
server answers it at once: an answer that does not refuse the pin proves that the lead was held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from router_trio.link import Deliver
from router_trio.nats.jetstream.consumer_config import WRONG_PIN
from router_trio.protocol import framing, headers

MOST_UNANSWERED = 4_096
"""Requests whose answers are still expected; beyond that the oldest are forgotten."""


class HeldLead(Protocol):
    """The consumer whose lead is kept."""

    def lead_proved(self, sent_at: float) -> None:
        """Record that a request with the pin, sent at that time, was answered as one with the lead."""

    def lead_refused(self) -> None:
        """Record that the server answered a request that its pin is not the one with the lead."""


class Holds:
    """The requests of one link. One subscription receives the answers for all its consumers."""

    def __init__(self, inbox: bytes, subscribe: Callable[[bytes, Deliver], object]) -> None:
        self._inbox = inbox
        self._subscribe = subscribe
        self._listens = False
        self._sent: dict[bytes, tuple[HeldLead, float]] = {}
        self._count = 0

    def reply(self, lead: HeldLead, now: float) -> bytes:
        """Return the reply subject of a request that is sent now."""
        if not self._listens:
            self._listens = True
            self._subscribe(self._inbox + b".*", self.read)
        self._count += 1
        subject = b"%b.%d" % (self._inbox, self._count)
        self._sent[subject] = lead, now
        if len(self._sent) > MOST_UNANSWERED:
            del self._sent[next(iter(self._sent))]
        return subject

    def read(self, batch: list[framing.RawMessage]) -> None:
        """Read answers, as a `link.Deliver`."""
        for raw in batch:
            sent = self._sent.pop(raw[0], None)
            if sent is None:
                continue
            lead, sent_at = sent
            code, description = headers.status(framing.header_block(raw))
            if code == WRONG_PIN:
                lead.lead_refused()
            elif _proves(code, description):
                lead.lead_proved(sent_at)


def _proves(code: int, description: str) -> bool:
    """Return True if only a consumer for which the pin has the lead answers a request with this status."""
    return code in (404, 408) or (code == 409 and "exceeds maxbytes" in description.lower())
