"""Inject faults into the operations of a link.

Guarantees: a faulty operation has only outcomes that a real link can have: an early or late refusal, a `LinkError` or a
`SourceError`, the loss of the link. All other operations pass unchanged and in order.
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
    Group,
    LeadState,
    Learn,
    Link,
    LinkListener,
    Members,
    Newest,
    Operation,
    PartitionedSpec,
    PartitionedStream,
    PullConsumer,
    Refusal,
    SchedulesCount,
    SchedulesSpec,
    SharedDelivery,
    StreamConfig,
    StreamState,
)
from router_trio.protocol.permissions import SERVICES

T = TypeVar("T")

Strike = Callable[[str], Fault | None]
"""Return the fault for the next operation of this name, or None."""

_INJECTED = "a fault was injected here"


@asynccontextmanager
async def open_faulty(
    connect: Connect, strike: Strike, server: str, inbox: bytes, listener: LinkListener
) -> AsyncIterator[FaultyLink]:
    """Connect, see `link.Connect`. A fault of `connect` may delay it, which can be cancelled."""
    fault = strike("connect")
    if fault is not None:
        await trio.sleep(fault.seconds)
        if fault.kind != DELAY:
            raise LinkError(f"{_INJECTED}: {fault}", reason=fault.reason)
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
    """A `link.Link` around another one, inside the context of `open_faulty`."""

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

    @property
    def lame_duck(self) -> bool:
        return self._link.lame_duck

    # --- publishing ---

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations. Blocks for the delays of faults, and the timeouts of core publishes, as well.

        Sends no fence: delayed operations would be behind it.
        """
        if self._death is not None:
            raise self._death
        began = trio.current_time()
        refused: list[Refusal] = []
        until = began
        unanswered: dict[float, list[int]] = {}
        ready: list[Operation] = []
        # Operations that were accepted together get faults one by one, and a refused one fails alone.
        for operation in (one for joined in operations for one in joined.split()):
            name = "publish_with_ack" if operation.with_ack else "publish"
            fault = self._strike(name)
            if fault is None:
                ready.append(operation)
            elif fault.kind == ERROR:
                refused.append(Refusal(operation, fault.reason, _INJECTED))
            elif fault.kind == TIMEOUT and operation.with_ack:
                unanswered.setdefault(fault.seconds, []).append(operation.order)
            elif fault.kind == TIMEOUT:
                refused.append(Refusal(operation, fault.reason, f"{_INJECTED}: {fault}"))
                until = max(until, began + fault.seconds)
            else:
                refused += await self._write(ready)
                ready = []
                if fault.kind == CLOSE_CONNECTION:
                    raise self._die(name)
                # Each is delayed from the time when the batch was sent, not from the operation before it.
                await trio.sleep_until(began + fault.seconds)
                ready.append(operation)
        for seconds, orders in unanswered.items():
            self._nursery.start_soon(self._refuse_late, orders, seconds)
        refused += await self._write(ready)
        # The caller confirms by fences what was not refused, so timeouts of core publishes are waited for here.
        await trio.sleep_until(until)
        return refused

    @property
    def can_send_at_once(self) -> bool:
        """Return False: faults may block."""
        return False

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        raise NotImplementedError

    async def fence(self) -> None:
        """Wait for the server. A delayed ack has not been sent by then."""
        await self._link.fence()

    async def ping(self) -> None:
        await self._link.ping()

    async def _write(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        return await self._link.send(operations) if operations else ()

    async def _refuse_late(self, orders: Sequence[int], seconds: float) -> None:
        await trio.sleep(seconds)
        for order in orders:
            self._listener.ack_refused(order, reasons.TIMEOUT, f"{_INJECTED}: no answer for {seconds:g} s", False)

    # --- receiving ---

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> CoreSubscription:
        if not subject.startswith(SERVICES):  # faults are for routes
            await self._before_subscribing()
        return await self._link.subscribe(subject, deliver, queue=queue)

    async def listen(self, subjects: Sequence[str], deliver: Deliver) -> Sequence[tuple[str, str]]:
        """Subscribe to subjects on which nothing depends. Gets no faults."""
        return await self._link.listen(subjects, deliver)

    def stop_listening(self, subjects: Sequence[str]) -> None:
        self._link.stop_listening(subjects)

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> PullConsumer:
        await self._before_subscribing()
        return await self._link.open_consumer(spec, deliver)

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait for the lead. Gets no faults: the operations after it do."""
        return await self._link.take_the_lead(spec, learn)

    async def find_streams(self, subject: str) -> Sequence[str]:
        """Look up streams. Gets no faults."""
        return await self._link.find_streams(subject)

    async def stream_state(self, name: str) -> StreamState | None:
        """Look up a stream. Gets no faults."""
        return await self._link.stream_state(name)

    async def newest(self, stream: str, subject: str) -> Newest | None:
        """Look up a message. Gets no faults."""
        return await self._link.newest(stream, subject)

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        """Create a stream if it does not exist. Gets no faults."""
        return await self._link.ensure_stream(wanted)

    async def ensure_partitioned(self, wanted: PartitionedSpec) -> PartitionedStream:
        """Find or create the stream with the partitions of a route. Gets no faults."""
        return await self._link.ensure_partitioned(wanted)

    async def members(self, group: Group) -> Members:
        """Return the members of a group. Gets no faults."""
        return await self._link.members(group)

    async def lead_state(self, stream: str, durable: str) -> LeadState:
        """Look up whether a consumer has a leader. Gets no faults."""
        return await self._link.lead_state(stream, durable)

    async def count_subjects(self, stream: str, pattern: str) -> int:
        """Count subjects of a stream. Gets no faults."""
        return await self._link.count_subjects(stream, pattern)

    async def count_schedules(self, spec: SchedulesSpec) -> SchedulesCount:
        """Count the schedules of a stream. Gets no faults."""
        return await self._link.count_schedules(spec)

    async def _before_subscribing(self) -> None:
        fault = self._strike("subscribe")
        if fault is None:
            return
        if fault.kind == CLOSE_CONNECTION:
            raise self._die("subscribe")
        await trio.sleep(fault.seconds)
        if fault.kind != DELAY:
            raise SourceError(f"{_INJECTED}: {fault}", reason=fault.reason)

    # --- answering a stream ---

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        """Ack messages. Each may get a fault of its own."""
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
        """Terminate a message. Gets the faults of naks."""
        self._answer("nak", partial(self._link.term, reply, reason))

    def in_progress(self, reply: bytes) -> None:
        self._link.in_progress(reply)

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Answer a request of another client. Gets no faults."""
        self._link.respond(reply, payload)

    def _answer(self, name: str, write: Callable[[], T]) -> T | None:
        """Write now, and return the result, or write later. Raises `LinkError` for a fault."""
        if self._death is not None:
            raise LinkError("not connected", reason=reasons.NOT_CONNECTED)
        fault = self._strike(name)
        if fault is not None and fault.kind == CLOSE_CONNECTION:
            raise self._die(name)
        if fault is not None and fault.kind != DELAY:
            raise LinkError(f"{_INJECTED}: {fault}", reason=fault.reason)
        if fault is None and not self._late:
            return write()
        self._late.append((trio.current_time() + (fault.seconds if fault is not None else 0.0), write))
        self._some_late.set()
        return None

    # --- the tasks ---

    async def answer_late(self) -> None:
        """Write delayed answers, in order, until the link ends."""
        while True:
            while self._late:
                await trio.sleep_until(self._late[0][0])
                self._late.popleft()[1]()
            self._some_late = trio.Event()
            await self._some_late.wait()

    async def end_when_struck(self) -> None:
        """Raise the `LinkError` of a fault that ends this link."""
        await self._dying.wait()
        assert self._death is not None
        raise self._death

    def _die(self, name: str) -> LinkError:
        """End the link, and return the error for the operation that had the fault."""
        if self._death is None:
            self._death = LinkError(
                f"{_INJECTED}: the connection was closed at an operation {name!r}", reason=reasons.CLOSED
            )
            self._dying.set()
        return self._death
