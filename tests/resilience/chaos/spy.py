"""A spy between a router and its links: records what was delivered, what was written, and the server's answers.

A link around a link, like fault injection, but it changes nothing, except for `deliver_twice`. It knows messages by the
number in their payload (see `load.payload`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import trio

from router_trio.errors import LinkError
from router_trio.link import (
    Connect,
    ConsumerSpec,
    CoreSubscription,
    Deliver,
    DeliverShared,
    Link,
    LinkListener,
    PullConsumer,
    Refusal,
    SharedDelivery,
    SubscriptionBatch,
)
from router_trio.message import PubAck
from router_trio.nats.link import Dialer
from router_trio.outbox.operation import Operation
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage
from router_trio.settings import ConnectionSettings
from tests.resilience.chaos.evidence import Journal
from tests.resilience.chaos.hands import Hands
from tests.resilience.chaos.load import numbers


class Gap(NamedTuple):
    """Deliveries of a consumer that reached no link of the router that received the next one: when that showed."""

    at: float
    missing: int


class Spy:
    """The records of all links of all routers that used `connect`."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """Numbers of the messages that core subscriptions delivered, in order."""
        self.written_at: dict[int, float] = {}
        """When the message with this number was last written and not refused."""
        self.first_taken_at: dict[int, float] = {}
        """When a link first had the message with this number in hand, to be written."""
        self.taken_again_at: dict[int, float] = {}
        """When a link had it for the second time."""
        self.first_refused_at: dict[int, float] = {}
        """When a router was first notified that a server or stream did not take the message with this number."""
        self.resent = 0
        """Publishes that were written again."""
        self.suppressed = 0
        """PubAcks that report a duplicate."""
        self.acked_at: list[float] = []
        """When each PubAck arrived."""
        self.stored: list[int] = []
        """Numbers of the messages that PubAcks report as stored, in order."""
        self.at_sequence: dict[int, set[int]] = {}
        """Numbers of the messages that were delivered, by their sequence in the source: several if a source was
        created again.
        """
        self.nakked: set[int] = set()
        """Numbers of the messages that were nak'ed."""
        self.first_brought_at: dict[int, float] = {}
        """When a link first delivered the message with this number from the source."""
        self.gaps: list[Gap] = []
        """Deliveries after the lookup of the link that did not get them: the server sent them to another link."""
        self.hands = Hands()
        self.journal = Journal()
        self.deliver_twice = False

    @property
    def longest_gap(self) -> float:
        """Return the longest time between two PubAcks, in seconds."""
        return max((later - earlier for earlier, later in pairwise(self.acked_at)), default=0.0)

    def wrote(self, frames: bytes) -> None:
        """Record that a link took these frames."""
        now = trio.current_time()
        for message in numbers(frames):
            self.resent += message in self.written_at
            self.written_at[message] = now

    def takes(self, frames: bytes) -> None:
        """Record that a link is about to write these frames."""
        now = trio.current_time()
        taken = numbers(frames)
        self.journal.note("written", taken)
        for message in taken:
            if message in self.first_taken_at:
                self.taken_again_at.setdefault(message, now)
            else:
                self.first_taken_at[message] = now

    def refused(self, operation: Operation | None, *, retriable: bool = False) -> None:
        """Record that a router was notified of a refusal. `retriable`: the router keeps the publish, and retries it by
        itself.
        """
        refused = numbers(operation.frame) if operation is not None else []
        for message in refused:
            self.first_refused_at.setdefault(message, trio.current_time())
        self.journal.note("refused for now" if retriable else "refused", refused)
        if not retriable:
            self.hands.sent_back(refused)

    def brought(self, holder: object, batch: Sequence[RawMessage], last: int) -> int:
        """Record deliveries from the source by a link of this router, at least one. Return the number of the last one.

        `last` is the number of the delivery before: on this link, or when the link looked up the consumer.
        """
        now = trio.current_time()
        self.hands.brought(holder, batch)
        for raw in batch:
            tokens = ack_reply.tokens(raw[1])
            sequence, number = int(tokens[ack_reply.SEQUENCE]), int(tokens[ack_reply.NUMBER])
            found = numbers(raw[4])
            self.at_sequence.setdefault(sequence, set()).update(found)
            for message in found:
                self.first_brought_at.setdefault(message, now)
            if number > last + 1:
                self.gaps.append(Gap(now, number - last - 1))
                self.journal.note(f"deliveries {last + 1} to {number - 1} reached no link")
            last = number
            self.journal.note("delivered" if tokens[ack_reply.DELIVERIES] == b"1" else "redelivered", found)
        return last

    def answered(self, how: str, replies: Sequence[bytes]) -> None:
        """Record acks and naks of a router, by the reply subjects of deliveries."""
        for reply in replies:
            sequence = int(ack_reply.tokens(reply)[ack_reply.SEQUENCE])
            self.journal.note(how, sorted(self.at_sequence.get(sequence, ())))

    def took(self, operation: Operation | None) -> None:
        """Record a PubAck for this publish."""
        self.acked_at.append(trio.current_time())
        if operation is not None:
            stored = numbers(operation.frame)
            self.stored += stored
            self.journal.note("stored", stored)

    def connect(self, name: str, settings: ConnectionSettings, holder: object = None) -> Connect:
        """Return a `router.ConnectFactory`. `holder` is the router, if there are several."""
        dial = Dialer(settings, name)

        @asynccontextmanager
        async def connect(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
            ears = _Ears(listener, self)
            async with dial(server, inbox, ears) as link:
                yield _Eyes(link, self, ears, holder)

        return connect


class _Ears:
    """A listener around a `link.LinkListener`, which records answers."""

    def __init__(self, listener: LinkListener, spy: Spy) -> None:
        self._listener = listener
        self._spy = spy
        self.unanswered: dict[int, Operation] = {}
        """JetStream publishes by their number, in the order in which they were written."""
        self.read_begins = listener.read_begins
        self.read_done = listener.read_done
        self.lame_duck = listener.lame_duck
        self.discovered = listener.discovered
        self.reply_denied = listener.reply_denied
        self.something_denied = listener.something_denied
        self.expects = listener.expects

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        for order, fate in pubacks:
            self._spy.suppressed += fate.duplicate
            self._spy.took(self.unanswered.pop(order, None))
        self._listener.acked(pubacks)

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        self._spy.refused(self.unanswered.pop(order, None), retriable=retriable)
        self._listener.ack_refused(order, reason, detail, retriable, stream=stream)

    def writes(self, operation: Operation) -> None:
        """Record that a publish that wants an answer is about to be written."""
        self.unanswered[operation.order] = operation

    def publish_denied(self, subject: bytes, detail: str) -> None:
        oldest = next((order for order, one in self.unanswered.items() if one.subject == subject), None)
        if oldest is not None:
            self._spy.refused(self.unanswered.pop(oldest))
        self._listener.publish_denied(subject, detail)


class _Eyes:
    """A `link.Link` around another one, which records what passes."""

    def __init__(self, link: Link, spy: Spy, ears: _Ears, holder: object) -> None:
        self._link = link
        self._spy = spy
        self._ears = ears
        self._holder = holder
        self._seen_together: dict[DeliverShared, DeliverShared] = {}
        self.fence = link.fence
        self.listen = link.listen
        self.stop_listening = link.stop_listening
        self.ping = link.ping
        self.in_progress = link.in_progress
        self.respond = link.respond
        self.find_streams = link.find_streams
        self.stream_state = link.stream_state
        self.newest = link.newest
        self.ensure_stream = link.ensure_stream
        self.take_the_lead = link.take_the_lead
        self.ensure_partitioned = link.ensure_partitioned
        self.count_subjects = link.count_subjects
        self.count_schedules = link.count_schedules
        self.members = link.members
        self.lead_state = link.lead_state

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

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        self._takes(operations)
        return self._sent(operations, await self._link.send(operations, fenced=fenced))

    @property
    def can_send_at_once(self) -> bool:
        return self._link.can_send_at_once

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        self._takes(operations)
        return self._sent(operations, self._link.send_at_once(operations, fenced=fenced))

    def _takes(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if operation.with_ack:
                self._ears.writes(operation)
            self._spy.takes(operation.frame)

    def _sent(self, operations: Sequence[Operation], refusals: Sequence[Refusal]) -> Sequence[Refusal]:
        refused = {refusal.operation.order for refusal in refusals}
        for refusal in refusals:
            if not refusal.retriable:
                self._spy.hands.sent_back(numbers(refusal.operation.frame))
        for operation in operations:
            if operation.order not in refused:
                self._spy.wrote(operation.frame)
            else:
                self._ears.unanswered.pop(operation.order, None)
        return refusals

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        self._spy.answered("ack", replies)
        return self._link.ack(replies)

    def nak(self, reply: bytes, delay: float) -> None:
        self._spy.hands.answered(reply)
        self._spy.nakked.update(self._spy.at_sequence.get(int(ack_reply.tokens(reply)[ack_reply.SEQUENCE]), ()))
        self._spy.answered(f"nak {delay:.3f} s", [reply])
        self._link.nak(reply, delay)

    def term(self, reply: bytes, reason: str) -> None:
        self._spy.hands.answered(reply)
        self._spy.answered("term", [reply])
        self._link.term(reply, reason)

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> CoreSubscription:
        seen: Deliver | SharedDelivery
        if isinstance(deliver, SharedDelivery):
            wrapped = partial(self._delivered_together, deliver.deliver)
            seen = SharedDelivery(self._seen_together.setdefault(deliver.deliver, wrapped), deliver.key)
        else:
            seen = partial(self._delivered, deliver)
        return await self._link.subscribe(subject, seen, queue=queue)

    def _delivered(self, deliver: Deliver, batch: list[RawMessage]) -> None:
        self._saw(batch)
        deliver(batch)

    def _delivered_together(self, deliver: DeliverShared, touched: Sequence[SubscriptionBatch]) -> None:
        for batch in touched:
            self._saw(batch)
        deliver(touched)

    def _saw(self, batch: list[RawMessage]) -> None:
        self._spy.received += [found for raw in batch for found in numbers(raw[4])]

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> PullConsumer:
        last = 0

        def seen(batch: list[RawMessage]) -> None:
            nonlocal last
            again = [raw for raw in batch if raw[1].startswith(b"$JS.ACK.")]
            if again:
                last = self._spy.brought(self._holder, again, last)
            deliver(batch)
            if self._spy.deliver_twice and again:
                deliver(again)

        consumer = await self._link.open_consumer(spec, seen)
        last = consumer.progress.deliveries
        self._spy.journal.note(f"consumer opened after delivery {last}")
        return consumer
