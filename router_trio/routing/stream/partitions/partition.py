"""The source of one partition of a route: its durable consumer, the lead of that, and the lease of the lead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.events import Emit
from router_trio.link import ConsumerSpec, Learn, Link, PullConsumer
from router_trio.protocol.copies import Copied
from router_trio.routing.pipeline import Routing
from router_trio.routing.resubscribe import SourceRetry
from router_trio.routing.stream.consumer.lead import WHILE_DRAINING_EVERY, Lead
from router_trio.routing.stream.consumer.lease import Lease
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.parts.status import PartStatus
from router_trio.routing.stream.source import StreamPart, StreamSource

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters


class LeadListener(Protocol):
    """Receives what becomes of the leads of partitions."""

    def taken(self, partition: Partition) -> None:
        """The server gave this process the lead."""

    def available(self, partition: Partition) -> None:
        """Messages of a partition are received from now on."""

    def not_led(self, partition: Partition) -> None:
        """Its consumer is not open any more: the lead may be lost, unless it was given up."""

    def lost(self, partition: Partition, error: SourceError) -> None:
        """Another process has the lead."""

    def changed(self) -> None:
        """A partition has entered another state."""


class Partition(StreamSource):
    """The source of one partition. It is served while this process should lead it, and closed when another one should.

    Messages of it are begun only while the lease holds. When the lead goes to another process, messages that are not
    begun are dropped, since that process gets them.
    """

    def __init__(
        self,
        number: int,
        spec: ConsumerSpec,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None,
        listener: LeadListener,
        before: StreamKeeper | None = None,
        *,
        copied: Copied | None,
    ) -> None:
        """`copied` is the stream that is copied, if the stream of the partitions was made for them."""
        self.number: int = number
        self.lease: Lease = Lease()
        self.status: PartStatus = PartStatus(routing.state, f"partition {number}", listener.changed)
        self.settled: Latch = Latch()
        """Set when a message has left the hand; replaced by `give_away`, which waits for it."""
        self.since: float = trio.current_time()
        """The time from which this process should lead it, or from which another one should."""
        self.served: bool = False
        """True while a task serves it, or hands it over."""
        self._listener = listener
        part = StreamPart(spec, self.status, self.lease, copied)
        super().__init__(routing, connection, emit, dead_letters, before, part)

    def _make_lead(self) -> Lead:
        self._lead: _PartitionLead = _PartitionLead(self, self._retry, self._emit)
        return self._lead

    # --- served ---

    async def serve_until_closed(self, link: Link) -> None:
        """Take the lead and receive until `close`. What is in hand then is for `give_away`."""
        self.reopen()
        await self.serve(link, Latch())

    async def _receive_on(self, link: Link, tried: Latch) -> None:
        was_closed = False
        try:
            await super()._receive_on(link, tried)
            was_closed = True
        except SourceError as error:
            if self.closed:
                return  # another process should lead it, and need not wait for the next attempt
            if error.reason != reasons.LEAD_LOST:
                raise
            self.lease.lost()
            self.keeper.lead_ends()
            self._listener.lost(self, error)
        finally:
            if not was_closed:
                self._lead.forget()
            self._listener.not_led(self)

    async def give_away(self) -> None:
        """Let another process lead, once everything that was sent or is in a handler is settled. Can be cancelled.

        The lead is kept until then, as far as this process has it, and given up when the server has processed the last
        ack.
        """
        try:
            while not self.keeper.lead_ends():
                self.keep_lead()
                self.settled = Latch()
                with trio.move_on_after(WHILE_DRAINING_EVERY):
                    await self.settled.wait()
            await self._lead.give_up_settled()
        finally:
            self._lead.forget()
        self.lease.lost()

    def lead_taken(self) -> None:
        """Record that this process has the lead, which another one may have had since the lease was over."""
        if not self.lease.holds(trio.current_time()):
            self.keeper.lead_ends()
        self._listener.taken(self)

    def lead_proved(self, sent_at: float) -> None:
        """Record that this process had the lead when it sent a request. Go on if the lease was over."""
        held = self.lease.holds(trio.current_time())
        self.lease.answered(sent_at)
        if not held:
            self.keeper.route.something_waits()

    def lead_refused(self) -> None:
        """Record that another process has the lead, or that the server has forgotten that this one had it."""
        self.lease.lost()
        self._pull_loop.lose(
            SourceError("the server reports that this process has lost the lead", reason=reasons.LEAD_LOST)
        )

    def _report_available(self) -> None:
        self._retry.first_try_over.set()
        self._connection.counters.succeed("subscribe")
        self._listener.available(self)

    def retire(self) -> None:
        self._lead.give_up()  # what is in hand by now was returned
        super().retire()

    # --- how it is used ---

    def left_hand(self) -> None:
        """Note that a message may have left the hand, and request more if there is room."""
        self.look()
        self.settled.set()

    def resize(self, max_in_flight: int, max_in_flight_bytes: int) -> None:
        """Let that many messages and bytes be in hand."""
        self._pull_loop.resize(max_in_flight, max_in_flight_bytes)


class _PartitionLead(Lead):
    """The lead of one partition."""

    def __init__(self, partition: Partition, retry: SourceRetry, emit: Emit) -> None:
        super().__init__(retry, partition.status, emit)
        self._partition = partition

    async def taken(self, link: Link, spec: ConsumerSpec, tried: Latch, learn: Learn) -> ConsumerSpec:
        spec = await super().taken(link, spec, tried, learn)
        if spec.pin is not None:
            self._partition.lead_taken()
        return spec

    def _report_waiting(self, spec: ConsumerSpec) -> None:
        """Report nothing: a partition that is to be led waits only until another process has given it up."""

    def holds(self, consumer: PullConsumer) -> None:
        consumer.watch_lead(self._partition.lead_proved, self._partition.lead_refused)
        super().holds(consumer)

    def forget(self) -> None:
        """Forget the consumer with the lead: its link is lost, or the server has ended it."""
        self._consumer = None

    async def give_up_settled(self) -> None:
        """Release the lead, behind the last ack."""
        if self._consumer is not None:
            await self._consumer.acks_processed()
        self.give_up()
