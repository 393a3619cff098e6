"""Requests on the wire of a link, any number at a time, each with one answer.

They are sent in the order of the calls. Nothing is retried, and a missing answer is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.errors import LinkError, SourceError, reasons
from router_trio.link import Deliver
from router_trio.nats.wire import Wire
from router_trio.protocol import framing
from router_trio.protocol.permissions import mapped_at_own_domain

ANSWER_WITHIN = 10.0
"""Seconds to wait for the answer to a request of a command."""


class Request:
    """A request that was sent. `answer` is the answer once it has arrived, else None."""

    __slots__ = ("_requests", "answer", "arrived", "number", "refusal", "subject")

    def __init__(self, requests: Requests, number: int, subject: bytes) -> None:
        self._requests = requests
        self.number: int = number
        self.subject: bytes = subject
        self.answer: framing.RawMessage | None = None
        self.refusal: SourceError | None = None
        """Why no answer will arrive: the server denied the request or its answer, or the request is too large."""
        self.arrived: trio.Event = trio.Event()

    async def answered(self, within: float = ANSWER_WITHIN) -> framing.RawMessage:
        """Return the answer. Can be cancelled, which forgets the request.

        Raises `SourceError`: `permission_denied`, `too_large`, or `timeout`; and `LinkError` if the link has ended.
        """
        if self.waits:
            await all_answered([self], within)
        self.forget()
        if self.answer is None:
            self.raise_refusal()
            detail = f"no answer to {framing.text(self.subject)} within {within:g} s"
            raise SourceError(detail, reason=reasons.TIMEOUT)
        return self.answer

    @property
    def waits(self) -> bool:
        """True while an answer may still arrive."""
        return self.answer is None and self.refusal is None and not self._requests.ended

    def raise_refusal(self) -> None:
        """Raise the `refusal`, if there is one, or `LinkError` if the link has ended."""
        if self.refusal is not None:
            raise self.refusal
        if self._requests.ended:
            raise LinkError("the link ended before the answer", reason=reasons.NOT_CONNECTED)

    def refuse(self, detail: str, reason: str = reasons.PERMISSION_DENIED) -> None:
        """End the wait for an answer."""
        self.refusal = SourceError(detail, reason=reason)
        self.arrived.set()

    def forget(self) -> None:
        """Stop waiting for the answer."""
        self._requests.waiting.pop(self.number, None)


async def all_answered(sent: Sequence[Request], within: float = ANSWER_WITHIN) -> None:
    """Wait until all these requests have an answer or were denied, or until the time has passed. Can be cancelled."""
    try:
        with trio.move_on_after(within):
            for request in sent:
                if request.waits:
                    await request.arrived.wait()
    finally:
        for request in sent:
            request.forget()


class Requests:
    """The requests of one link. Their answers are sent below `inbox`, which is below the connection's inbox prefix.

    It is subscribed to at the first request, and again at the next one after the server denied that.
    """

    def __init__(self, wire: Wire, inbox: bytes, too_large: Callable[[bytes], str | None]) -> None:
        """`too_large` returns why the server would refuse a frame as too large; None if it would accept it."""
        self.waiting: dict[int, Request] = {}
        self.inbox: bytes = inbox
        self.answers: bytes = inbox + b".*"
        """The subjects of the answers."""
        self._wire = wire
        self._too_large = too_large
        self._numbers = 0
        self._subscription: bytes | None = None
        self.ended: bool = False
        """True once the link has ended, or is being closed."""

    @property
    def too_many(self) -> int:
        """Number of times that the server refused a subscription of this link because there were too many."""
        return self._wire.subscriptions.too_many

    def send(self, subject: bytes, body: bytes = b"", headers: bytes = b"", reply: bytes = b"") -> Request:
        """Send a request without waiting for its answer. Nothing is sent on a link that has ended.

        With a `reply` subject the answers, any number, are sent there: the request then gets none, and may be denied.
        """
        self._numbers += 1
        request = Request(self, self._numbers, subject)
        if self.ended:
            return request
        reply = reply or b"%b.%d" % (self.inbox, self._numbers)
        frame = framing.publish(subject, body, reply=reply, headers=headers)
        too_large = self._too_large(frame)
        if too_large is not None:
            request.refuse(f"the request to {framing.text(subject)} has {too_large}", reasons.TOO_LARGE)
            return request
        self.waiting[self._numbers] = request
        if self._subscription is None:
            self._subscription = self._wire.subscriptions.add(self.answers, self._arrived)
        self._wire.send(frame)
        return request

    async def ping(self) -> None:
        """Wait until the server has answered a PING. Can be cancelled."""
        await self._wire.ping()

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
            request.refuse(f"this user may not publish to {framing.text(subject)}: {detail}")

    def deny_all(self, detail: str) -> None:
        """Fail every request: the server denied something without naming it."""
        for request in self.waiting.values():
            request.refuse(f"the server refused this or another request: {detail}")

    def deny_answers(self, detail: str) -> None:
        """Fail every request: the server denied the subscription to `answers`."""
        self._unsubscribe()
        for request in self.waiting.values():
            request.refuse(f"the answer to {framing.text(request.subject)} can't be received: {detail}")

    def no_room(self) -> SourceError:
        """Return the error for answers that can't be received because the server allows no more subscriptions."""
        self._unsubscribe()
        return self._wire.subscriptions.no_room("the answers of the JetStream API")

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._wire.subscriptions.remove(self._subscription)
            self._subscription = None

    def end(self) -> None:
        """End the wait for answers, also of later requests: routes may send some while the link is closed."""
        self.ended = True
        for request in self.waiting.values():
            request.arrived.set()

    def _arrived(self, batch: Sequence[framing.RawMessage]) -> None:
        for raw in batch:
            number = raw[0].rpartition(b".")[2]
            request = self.waiting.get(int(number)) if number.isdigit() and len(number) < 19 else None
            if request is not None and request.answer is None:
                request.answer = raw
                request.arrived.set()
