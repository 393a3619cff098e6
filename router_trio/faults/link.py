"""A link that faults strike, around one that works.

Guarantees: an operation that is struck meets what a real link would do to it, and nothing that a real link could not:
a refusal, a late one, a `LinkError` or a `SourceError`, the death of the link. What is not struck passes untouched and
in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from router_trio.errors import LinkError, SourceError, innermost, reasons
from router_trio.faults.kinds import CLOSE_CONNECTION, DELAY, ERROR, TIMEOUT, Fault
from router_trio.link import (
    Connect,
    ConsumerSpec,
    CoreSubscription,
    Deliver,
    Learn,
    Link,
    LinkListener,
    Operation,
    PullConsumer,
    Refusal,
    SharedDelivery,
    StreamConfig,
    StreamState,
)

T = TypeVar("T")

Strike = Callable[[str], Fault | None]
"""Whether an operation of this name is struck, and by what."""

_TOLD = "a fault was injected here"


@asynccontextmanager
async def open_faulty(
    connect: Connect, strike: Strike, server: str, inbox: bytes, listener: LinkListener
) -> AsyncIterator[FaultyLink]:
    """Connect, as `link.Connect` says. Blocks also for as long as a fault of `connect` says; can be cancelled then."""
    fault = strike("connect")
    if fault is not None:
        await trio.sleep(fault.seconds)
        if fault.kind != DELAY:
            raise LinkError(f"{_TOLD}: {fault}", reason=fault.reason)
    try:
        async with connect(server, inbox, listener) as link, trio.open_nursery() as nursery:
            faulty = FaultyLink(link, listener, strike, nursery)
            nursery.start_soon(faulty.end_when_struck)
            nursery.start_soon(faulty.answer_late)
            yield faulty
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise innermost(group, LinkError) from None


class FaultyLink:
    """A `link.Link` around another one. Lives inside the context that `open_faulty` gives."""

    def __init__(self, link: Link, listener: LinkListener, strike: Strike, nursery: trio.Nursery) -> None:
        self._link = link
        self._listener = listener
        self._strike = strike
        self._nursery = nursery
        self._death: LinkError | None = None
        self._dying = trio.Event()
        self._late: deque[tuple[float, Callable[[], object]]] = deque()
        self._some_late = trio.Event()

    @property
    def server(self) -> str:
        return self._link.server

    @property
    def max_payload(self) -> int:
        return self._link.max_payload

    @property
    def max_control_line(self) -> int:
        return self._link.max_control_line

    # --- publishing ---

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations. Blocks also for as long as delays, and timeouts of core publishes, say.

        No fence goes along: what is delayed would be behind it.
        """
        if self._death is not None:
            raise self._death
        began = trio.current_time()
        refused: list[Refusal] = []
        until = began
        unanswered: dict[float, list[int]] = {}
        ready: list[Operation] = []
        # What was accepted together is struck one by one all the same, and what is refused of it fails alone.
        for operation in (one for joined in operations for one in joined.split()):
            name = "publish_with_ack" if operation.with_ack else "publish"
            fault = self._strike(name)
            if fault is None:
                ready.append(operation)
            elif fault.kind == ERROR:
                refused.append(Refusal(operation, fault.reason, _TOLD))
            elif fault.kind == TIMEOUT and operation.with_ack:
                unanswered.setdefault(fault.seconds, []).append(operation.order)
            elif fault.kind == TIMEOUT:
                refused.append(Refusal(operation, fault.reason, f"{_TOLD}: {fault}"))
                until = max(until, began + fault.seconds)
            else:
                refused += await self._write(ready)
                ready = []
                if fault.kind == CLOSE_CONNECTION:
                    raise self._die(name)
                # Each is late by the same time from when the batch was sent, not from the one before it.
                await trio.sleep_until(began + fault.seconds)
                ready.append(operation)
        for seconds, orders in unanswered.items():
            self._nursery.start_soon(self._refuse_late, orders, seconds)
        refused += await self._write(ready)
        # Its caller confirms by fences what it gets no refusal of: the time of a core publish must be waited for here.
        await trio.sleep_until(until)
        return refused

    @property
    def can_send_at_once(self) -> bool:
        """Return False: faults may block."""
        return False

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        raise NotImplementedError

    async def fence(self) -> None:
        """Wait for the server. An ack that is delayed has not been sent yet."""
        await self._link.fence()

    async def ping(self) -> None:
        await self._link.ping()

    async def _write(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        return await self._link.send(operations) if operations else ()

    async def _refuse_late(self, orders: Sequence[int], seconds: float) -> None:
        await trio.sleep(seconds)
        for order in orders:
            self._listener.ack_refused(order, reasons.TIMEOUT, f"{_TOLD}: no answer for {seconds:g} s", False)

    # --- receiving ---

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> CoreSubscription:
        await self._before_subscribing()
        return await self._link.subscribe(subject, deliver, queue=queue)

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> PullConsumer:
        await self._before_subscribing()
        return await self._link.open_consumer(spec, deliver)

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait for the lead. Never struck: what follows is."""
        return await self._link.take_the_lead(spec, learn)

    async def find_streams(self, subject: str) -> Sequence[str]:
        """Look up streams. Never struck."""
        return await self._link.find_streams(subject)

    async def stream_state(self, name: str) -> StreamState | None:
        """Look up a stream. Never struck."""
        return await self._link.stream_state(name)

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        """Make a stream if there is none. Never struck."""
        return await self._link.ensure_stream(wanted)

    async def _before_subscribing(self) -> None:
        fault = self._strike("subscribe")
        if fault is None:
            return
        if fault.kind == CLOSE_CONNECTION:
            raise self._die("subscribe")
        await trio.sleep(fault.seconds)
        if fault.kind != DELAY:
            raise SourceError(f"{_TOLD}: {fault}", reason=fault.reason)

    # --- answering a stream ---

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        """Ack messages. Each is struck by itself."""
        failed: list[tuple[bytes, LinkError]] = []
        for reply in replies:
            try:
                failed += self._answer("ack", partial(self._link.ack, [reply])) or ()
            except LinkError as error:
                failed.append((reply, error))
        return failed

    def nak(self, reply: bytes, delay: float) -> None:
        self._answer("nak", partial(self._link.nak, reply, delay))

    def term(self, reply: bytes, reason: str) -> None:
        """Terminate a message. Struck by what is injected for naks."""
        self._answer("nak", partial(self._link.term, reply, reason))

    def in_progress(self, reply: bytes) -> None:
        self._link.in_progress(reply)

    def _answer(self, name: str, write: Callable[[], T]) -> T | None:
        """Write now, and return what that returns, or later. Raises `LinkError` if it is struck."""
        if self._death is not None:
            raise LinkError("not connected", reason=reasons.NOT_CONNECTED)
        fault = self._strike(name)
        if fault is not None and fault.kind == CLOSE_CONNECTION:
            raise self._die(name)
        if fault is not None and fault.kind != DELAY:
            raise LinkError(f"{_TOLD}: {fault}", reason=fault.reason)
        if fault is None and not self._late:
            return write()
        self._late.append((trio.current_time() + (fault.seconds if fault is not None else 0.0), write))
        self._some_late.set()
        return None

    # --- the tasks ---

    async def answer_late(self) -> None:
        """Write what was delayed, in order, for as long as the link lives."""
        while True:
            while self._late:
                await trio.sleep_until(self._late[0][0])
                self._late.popleft()[1]()
            self._some_late = trio.Event()
            await self._some_late.wait()

    async def end_when_struck(self) -> None:
        """Raise the `LinkError` that ends this link, if a fault says so."""
        await self._dying.wait()
        assert self._death is not None
        raise self._death

    def _die(self, name: str) -> LinkError:
        """End the link, and return the error for whoever met it."""
        if self._death is None:
            self._death = LinkError(
                f"{_TOLD}: the connection was closed at an operation {name!r}", reason=reasons.CLOSED
            )
            self._dying.set()
        return self._death
