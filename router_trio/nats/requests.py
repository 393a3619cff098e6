"""Requests on the wire of a link, any number at a time, each with one answer.

They are sent in the order of the calls. For commands that read or send many messages: nothing is retried, and a missing
answer is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import Deliver
from router_trio.nats.wire import Wire
from router_trio.protocol import framing
from router_trio.protocol.permissions import mapped_at_own_domain

ANSWER_WITHIN = 10.0
"""Seconds to wait for the answer to a request of a command."""


class Request:
    """A request that was sent. `answer` is the answer once it has arrived, else None."""

    __slots__ = ("_requests", "answer", "arrived", "denied", "number", "subject")

    def __init__(self, requests: Requests, number: int, subject: bytes) -> None:
        self._requests = requests
        self.number: int = number
        self.subject: bytes = subject
        self.answer: framing.RawMessage | None = None
        self.denied: str | None = None
        self.arrived: trio.Event = trio.Event()

    async def answered(self, within: float = ANSWER_WITHIN) -> framing.RawMessage:
        """Return the answer. Raises `SourceError`: `permission_denied`, or `timeout` without one. Can be cancelled."""
        if self.answer is None and self.denied is None:
            await all_answered([self], within)
        self.forget()
        if self.denied is not None:
            raise SourceError(self.denied, reason=reasons.PERMISSION_DENIED)
        if self.answer is None:
            detail = f"no answer to {framing.text(self.subject)} within {within:g} s"
            raise SourceError(detail, reason=reasons.TIMEOUT)
        return self.answer

    def forget(self) -> None:
        """Stop waiting for the answer."""
        self._requests.waiting.pop(self.number, None)


async def all_answered(sent: Sequence[Request], within: float = ANSWER_WITHIN) -> None:
    """Wait until all these requests have an answer or were denied, or until the time has passed. Can be cancelled."""
    try:
        with trio.move_on_after(within):
            for request in sent:
                if request.answer is None and request.denied is None:
                    await request.arrived.wait()
    finally:
        for request in sent:
            request.forget()


class Requests:
    """The requests of one link. Their answers are sent below `inbox`, which is below the connection's inbox prefix."""

    def __init__(self, wire: Wire, inbox: bytes) -> None:
        self.waiting: dict[int, Request] = {}
        self._wire = wire
        self.inbox: bytes = inbox
        self._numbers = 0
        wire.subscriptions.add(inbox + b".*", self._arrived)

    def send(self, subject: bytes, body: bytes = b"", headers: bytes = b"", reply: bytes = b"") -> Request:
        """Send a request without waiting for its answer.

        With a `reply` subject the answers, any number, are sent there: the request then gets none, and may be denied.
        """
        self._numbers += 1
        request = self.waiting[self._numbers] = Request(self, self._numbers, subject)
        reply = reply or b"%b.%d" % (self.inbox, self._numbers)
        self._wire.send(framing.publish(subject, body, reply=reply, headers=headers))
        return request

    def subscribe(self, subject: bytes, deliver: Deliver) -> bytes:
        """Deliver what is sent to a subject below the inbox prefix. Returns the id for `unsubscribe`."""
        return self._wire.subscriptions.add(subject, deliver)

    def unsubscribe(self, subscription: bytes) -> None:
        """End a subscription."""
        self._wire.subscriptions.remove(subscription)

    def deny(self, subject: bytes, detail: str) -> None:
        """Fail the requests to `subject`, or that the server maps to it, since it denied a publish to it."""
        denied = [one for one in self.waiting.values() if one.subject == subject] or [
            one for one in self.waiting.values() if mapped_at_own_domain(one.subject) == subject
        ]
        for request in denied:
            request.denied = f"this user may not publish to {framing.text(subject)}: {detail}"
            request.arrived.set()

    def deny_all(self, detail: str) -> None:
        """Fail every request: the server denied something without naming it."""
        for request in self.waiting.values():
            request.denied = f"the server refused this or another request: {detail}"
            request.arrived.set()

    def _arrived(self, batch: Sequence[framing.RawMessage]) -> None:
        for raw in batch:
            number = raw[0].rpartition(b".")[2]
            request = self.waiting.get(int(number)) if number.isdigit() and len(number) < 19 else None
            if request is not None and request.answer is None:
                request.answer = raw
                request.arrived.set()
