"""A stream whose partitions several processes share: one source of a route around the sources of its partitions.

On each link the source finds the stream that has the partitions, joins the other processes, and follows who is there.
`Membership` decides which partitions this process should lead. A task for each of these takes the lead, receives, and
hands the partition over when it is the share of another process. Nothing passes between the processes but their
announcements; only one of them has the lead of a partition, which the server gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from socket import gethostname
from typing import TYPE_CHECKING, Any

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.supervisor import Connection
from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.events import (
    Emit,
    PartitionEvent,
    RouteMembersChanged,
    RoutePartitionGivenUp,
    RoutePartitionLost,
    RoutePartitionsUnled,
    RoutePartitionTaken,
    StreamWentBack,
)
from router_trio.link import MEMBER_GONE_AFTER, Announced, Group, Link, Members, PartitionedSpec, PartitionedStream
from router_trio.protocol.copies import Copied
from router_trio.protocol.framing import wire
from router_trio.routing.pipeline import Routing
from router_trio.routing.source import KeptSource
from router_trio.routing.stream.consumer.feeding import Feeding
from router_trio.routing.stream.consumer.limits import consumer_spec
from router_trio.routing.stream.consumer.tokens import token_of
from router_trio.routing.stream.in_hand import LeftInHand
from router_trio.routing.stream.keeper import StreamKeeper
from router_trio.routing.stream.partitions.membership import (
    ELSEWHERE,
    GIVEN_UP,
    LED,
    SILENT_AFTER,
    WANTED,
    Membership,
)
from router_trio.routing.stream.partitions.partition import Partition
from router_trio.routing.stream.partitions.unled import Unled
from router_trio.routing.stream.parts.keeper import PartsKeeper
from router_trio.settings.routes.sources.partitioned import derived_stream, durables, partitioning_of
from router_trio.states import FAILED, PAUSED, RUNNING, STARTING, Behind, Holder, Partitions

if TYPE_CHECKING:
    from router_trio.routing.dead_letters import DeadLetters

ANNOUNCE_EVERY = 1.5
"""Seconds between two announcements: two in a row may be lost before a process counts as gone."""

LOOK_EVERY = 1.0
"""Seconds between two looks at the members."""

JOINED_EVERY = 0.1
"""Seconds between two looks at the members until this process is one of them."""

LOOK_AT_STREAM_EVERY = 5.0
"""Seconds between two looks at the stream of the partitions: whether it still has them, and how many messages it lacks.
"""

STALLED_AFTER = 30.0
"""Seconds for which the source of that stream was not heard of, while messages are missing, until that is reported."""

SOURCING, ROLLED_BACK, UNLED = "sourcing", "rolled back", "unled"

REPORTED_EVERY = 10.0
"""Seconds between two reports of partitions that no process leads, while there are some."""

MOST_NAMED = 8
"""Partitions, and members, that a reason names. The others are counted."""

DENIED_LOOK_EVERY = 60.0
"""Seconds between two lookups of leads while this user has no permission for them: a server logs each of these."""

ANNOUNCE, LOOK = "announce", "look"
_FAILING = {
    ANNOUNCE: "this process can't announce itself to those that share the partitions",
    LOOK: "the processes that share the partitions are not known",
}
"""The requests about the members, and what follows if one fails, as text."""

WHILE_ENDING_EVERY = 1.0
"""Seconds between two attempts to take messages back from the outboxes at the end of the route."""


class PartitionedSource(KeptSource[PartsKeeper]):
    """The partitions of one route. It is the `LeadListener` of those that this process leads."""

    def __init__(
        self,
        routing: Routing,
        connection: Connection,
        emit: Emit,
        dead_letters: DeadLetters | None = None,
        before: PartitionedSource | None = None,
        *,
        router: str = "",
    ) -> None:
        """`before` is the previous source: its unsettled messages continue here. `router` is the name of the router."""
        super().__init__(routing, connection, emit)
        source = routing.plan.settings.source
        partitioning = partitioning_of(source)
        assert partitioning is not None, "the route has partitions"
        consumer = source.kind.consumer(source)
        assert consumer is not None, "a valid route with partitions has a stream and a durable"
        self._partitioning = partitioning
        stream, durable = self._stream, self._durable = consumer
        derived = derived_stream(stream, durable)
        self._wanted = PartitionedSpec(stream, derived, partitioning, source.deliver, routing.plan.copy)
        self._dead_letters = dead_letters
        self._router = router
        self.state.in_flight_limit = source.max_in_flight
        # Another process gets what is not begun at the end.
        self.keeper: PartsKeeper = PartsKeeper(routing, self._behind, StreamKeeper.lead_ends, self._shown)
        me: str = connection.platform.token_hex(8) if before is None else before._membership.me
        self._membership: Membership = Membership(me, partitioning.count)
        self._unled: Unled = Unled(connection.platform.random)
        self._reported: frozenset[int] = frozenset()
        """Partitions that were reported to be unled, and below when."""
        self._reported_at = -inf
        self._partitions: dict[int, Partition] = {}
        self._before: Mapping[int, StreamKeeper] = {}
        self._copied: Copied = Copied(b"")
        self._found: PartitionedStream | None = None
        """The stream of the partitions, as found last."""
        self._failing: dict[str, tuple[float, str]] = {}
        """Requests about the members that fail, each with the time of its last success, and why it fails."""
        self._link: Link | None = None
        """The link on which partitions are served, and below the nursery of the tasks that serve them."""
        self._nursery: trio.Nursery | None = None
        self._failure: SourceError | None = None
        self._wake = trio.Event()
        self._feeding = Feeding(routing, connection, dead_letters, self._lose)
        self.look = self._look_each
        if before is not None:
            self._continue(before)

    def _continue(self, before: PartitionedSource) -> None:
        """Continue with the messages that the previous source has left in hand."""
        self._found = before._found
        self._copied = before._copied
        self._wanted = replace(self._wanted, known=before._wanted.known)
        self._membership.stand_ins |= before._membership.stand_ins
        self._before = {number: one.keeper for number, one in before._partitions.items()}
        left: list[Holder] = []
        for number, keeper in self._before.items():
            left.append(self._partition(number).keeper.started_before or keeper)
        before.state.held_by(LeftInHand(lambda: sum(one.in_hand or 0 for one in left)))

    # --- on one link ---

    async def _receive(self, link: Link, tried: Latch) -> None:
        # On this link, messages that were stored since a rollback may be delivered before the next look.
        copied = self._copied
        wanted = replace(self._wanted, highest=copied.highest, highest_at=copied.highest_at)
        self._use(await link.ensure_partitioned(wanted))
        copied.highest = 0
        found = self._found
        assert found is not None, "just found"
        await self._check_feeding(link)
        group = Group(self._stream, self._durable, self._membership.me, found.replicas, found.storage)
        members = await link.members(group)
        self._receiving_begins()
        self._failure = None
        self._failing.clear()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, members)
                nursery.start_soon(self._look_at_stream, link)
                nursery.start_soon(self._look_for_unled, link, found.name)
                async with trio.open_nursery() as partitions:
                    self._link, self._nursery = link, partitions
                    self._go_by(range(self._membership.count))
                    await self._follow(members, tried)
                    if self._failure is None:
                        await members.withdraw()  # while partitions are handed over
                    else:
                        partitions.cancel_scope.cancel()
                if self._failure is not None:
                    await members.withdraw()
                nursery.cancel_scope.cancel()
        finally:
            self._link = self._nursery = None
            self._unled.forget()
            self.state.remove_obstacle(UNLED)
            self._receiving_ends("no partition is read, because the connection is down")
        if self._failure is not None:
            raise self._failure

    def _use(self, found: PartitionedStream) -> None:
        if self._partitions and self._found is not None and self._found.name != found.name:
            raise SourceError(
                f"the partitions were read from the stream {self._found.name!r}, and the stream {found.name!r} has "
                "them now; restart the router",
                reason=reasons.PARTITIONS_DIFFER,
            )
        self._found = found
        self._wanted = replace(self._wanted, known=found.known)
        if found.source:
            self._copied.stream = wire(found.source)
        self._copied.reused = found.reused
        if found.went_back:
            at, route = trio.current_time(), self.state.name
            self._emit(StreamWentBack(at=at, route=route, stream=found.source, detail=found.went_back))
        if found.stuck:
            text = f"it is not known whether the stream {found.source!r} was rolled back: {found.stuck}"
            self.state.add_obstacle(ROLLED_BACK, bounded(text))
        else:
            self.state.remove_obstacle(ROLLED_BACK)
        stalled = found.lag and found.sourced_at
        if stalled and self._connection.platform.wall_clock() > found.sourced_at / 1e9 + STALLED_AFTER:
            text = f"the stream {found.name!r} lacks {found.lag} messages of the stream {found.source!r}, and has not "
            text += f"heard of it for {STALLED_AFTER:g} s; check that {found.source!r} has a leader"
            self.state.add_obstacle(SOURCING, text)
        else:
            self.state.remove_obstacle(SOURCING)

    async def _check_feeding(self, link: Link) -> None:
        """Raise `SourceError` (`feeds_itself`) if the stream that is partitioned stores what the route sends."""
        try:
            state = await link.stream_state(self._stream)
        except SourceError:
            return  # `_feeding` looks again
        if state is not None:
            self._feeding.check(state.created, state.stores)

    async def _look_at_stream(self, link: Link) -> None:
        """Look at the stream of the partitions, until cancelled. If it does not have them any more, nothing is read."""
        while True:
            is_announced = self._found is not None and self._found.is_announced
            await trio.sleep(LOOK_EVERY if is_announced else LOOK_AT_STREAM_EVERY)
            try:
                self._use(await link.ensure_partitioned(self._wanted))
            except SourceError as error:
                if error.reason not in reasons.LOOKUP_FAILED:
                    self._lose(error)
                    return

    def _lose(self, error: SourceError) -> None:
        """Stop reading, since the stream can't be used any more."""
        self._failure = error
        self._wake.set()

    # --- members ---

    async def _announce(self, members: Members) -> None:
        """Announce this process until the source is closed. No announcement waits for the answer to the one before."""
        async with trio.open_nursery() as nursery:
            while not self.closed:
                nursery.start_soon(self._announce_once, members)
                await trio.sleep(ANNOUNCE_EVERY * self._membership.pace)

    async def _announce_once(self, members: Members) -> None:
        announced = Announced(self._router, gethostname(), self._has_lead)
        try:
            await members.announce(announced, MEMBER_GONE_AFTER * self._membership.pace)
        except SourceError as error:
            self._request_failed(ANNOUNCE, error)
        else:
            self._request_succeeded(ANNOUNCE)

    async def _follow(self, members: Members, tried: Latch) -> None:
        """Look at the members, and go by them, until the source is closed or has failed."""
        look_at, joined = -inf, False
        while not self.closed and self._failure is None:
            self._wake = trio.Event()
            if trio.current_time() >= look_at:
                try:
                    seen = await members.seen()
                except SourceError as error:
                    self._request_failed(LOOK, error)
                    self._retry.tried(tried)
                else:
                    self._request_succeeded(LOOK)
                    self._saw(seen.ids, seen.moved)
                if not joined and self._membership.members:
                    joined = True
                    self._retry.tried(tried)
                    name = self._wanted.stream if self._found is None else self._found.name
                    self._retry.ready(f"{name} ({self._durable}, {self._membership.count} partitions)")
                look_at = trio.current_time() + (LOOK_EVERY * self._membership.pace if joined else JOINED_EVERY)
            self._go_by(self._membership.settle(trio.current_time()))
            with trio.CancelScope(deadline=min(look_at, self._membership.due_at)):
                await self._wake.wait()

    def _saw(self, ids: Collection[str], moved: Mapping[int, str]) -> None:
        membership, before = self._membership, self._membership.members
        changed = membership.saw(ids, trio.current_time(), moved)
        now = membership.members
        if now != before:
            self._emit(
                RouteMembersChanged(
                    at=trio.current_time(),
                    route=self.state.name,
                    stream=self._stream,
                    durable=self._durable,
                    count=len(now),
                    joined=len(now - before),
                    left=len(before - now),
                    share=membership.share,
                )
            )
        self._go_by(changed)

    def _request_failed(self, what: str, error: SourceError) -> None:
        """Report that requests fail, unless they have succeeded a moment ago. What is led is still received."""
        now = trio.current_time()
        succeeded_at, reported = self._failing.get(what, (-inf, ""))
        if now < succeeded_at + SILENT_AFTER:
            return
        text = bounded(f"{_FAILING[what]}: {error}")
        self._failing[what] = succeeded_at, text
        if not reported:
            self._retry.tell(error)
        self._show()

    def _request_succeeded(self, what: str) -> None:
        self._failing[what] = trio.current_time(), ""
        self._retry.succeeded()
        self._show()

    # --- partitions of others ---

    async def _look_for_unled(self, link: Link, stream: str) -> None:
        """Look whether the partitions of others have leaders, until cancelled, and stand in for those without."""
        names = durables(self._routing.plan.settings.source)
        while True:
            membership = self._membership
            others = membership.of_others
            number = self._unled.next_look(others, trio.current_time())
            if number is not None:
                await self._look_for_leader(number, link, stream, names[number])
            self._report_unled()
            self._show()
            await trio.sleep(self._unled.pause(len(others), len(membership.members)))

    async def _look_for_leader(self, number: int, link: Link, stream: str, durable: str) -> None:
        membership = self._membership
        try:
            state = await link.lead_state(stream, durable)
        except SourceError as error:
            self._unled.not_known(number)
            if error.reason == reasons.PERMISSION_DENIED:
                await trio.sleep(DENIED_LOOK_EVERY)
            return
        now = trio.current_time()
        if number not in membership.of_others:
            return
        if state.paused is not None:
            self._unled.is_paused(number, state.paused, now)
            return
        if not state.unled:
            if self._unled.led(number, now):
                self._go_by(membership.led_elsewhere(number, now))
            return
        stand_in = self._unled.not_led(number, now)
        if stand_in is not None and number not in membership.stand_ins:
            until, firm = stand_in
            self._go_by(membership.stand_in(number, now, until, firm=firm))
            self._wake.set()  # `due_at` is another one

    def _report_unled(self) -> None:
        """Show among the obstacles of the route which partitions no process leads, and report new ones."""
        unled = self._unled.partitions
        if not unled:
            self._reported = frozenset()
            self.state.remove_obstacle(UNLED)
            return
        text = bounded(_unled_text(unled, self._membership.owners))
        self.state.add_obstacle(UNLED, text)
        now = trio.current_time()
        if self._reported.issuperset(unled) or now < self._reported_at + REPORTED_EVERY:
            return
        self._reported, self._reported_at = frozenset(unled), now
        self._emit(
            RoutePartitionsUnled(
                at=now,
                route=self.state.name,
                stream=self._stream,
                durable=self._durable,
                count=len(unled),
                detail=text,
            )
        )

    # --- partitions ---

    def _partition(self, number: int) -> Partition:
        """Return a partition. It is created when this process should lead it for the first time."""
        found = self._partitions.get(number)
        if found is None:
            found = self._partitions[number] = self._make(number)
            self.keeper.add(found.keeper, found.left_hand)
        return found

    def _make(self, number: int) -> Partition:
        stream, source = self._found, self._routing.plan.settings.source
        assert stream is not None, "partitions are served once their stream was found"
        spec = replace(
            consumer_spec(source),
            stream=stream.name,
            durable=durables(source)[number],
            filters=self._partitioning.filters(number),
            token=token_of(number),
            standby=True,
            # A stream that sources another one begins there.
            deliver="all" if stream.source else source.deliver,
        )
        return Partition(
            number,
            spec,
            self._routing,
            self._connection,
            self._emit,
            self._dead_letters,
            self,
            self._before.get(number),
            copied=self._copied if stream.source else None,
        )

    def _go_by(self, changed: Iterable[int]) -> None:
        """Serve partitions that this process should lead, and close those that another one should."""
        now, any_changed = trio.current_time(), False
        for number in changed:
            phase = self._membership.phase(number)
            any_changed = True
            if phase is ELSEWHERE and number not in self._partitions:
                continue
            partition = self._partition(number)
            partition.since = now
            if phase in (ELSEWHERE, GIVEN_UP):
                partition.close()
            if phase is not ELSEWHERE and self._nursery is not None and not partition.served:
                assert self._link is not None, "set with the nursery"
                partition.served = True
                self._nursery.start_soon(self._serve, partition, self._link)
        if any_changed:
            self._resize()
            self._show()

    async def _serve(self, partition: Partition, link: Link) -> None:
        """Lead a partition as long as this process should, and hand it over, until it is not this one's any more."""
        membership, number = self._membership, partition.number
        try:
            while (phase := membership.phase(number)) is not ELSEWHERE:
                if phase is not GIVEN_UP:
                    await partition.serve_until_closed(link)
                    continue
                await partition.give_away()
                membership.released(number)
                now = trio.current_time()
                self._report(RoutePartitionGivenUp, partition, now, seconds=now - partition.since)
                partition.since = now
                self._resize()
        finally:
            partition.served = False

    def _resize(self) -> None:
        """Divide what may be in hand among the partitions of this process."""
        source = self._routing.plan.settings.source
        mine = [one for number, one in self._partitions.items() if self._membership.phase(number) is not ELSEWHERE]
        for partition in mine:
            partition.resize(max(1, source.max_in_flight // len(mine)), max(1, source.max_in_flight_bytes // len(mine)))

    # --- their leads ---

    def taken(self, partition: Partition) -> None:
        if self._membership.taken(partition.number, trio.current_time()) is GIVEN_UP:
            partition.close()

    def available(self, partition: Partition) -> None:
        now = trio.current_time()
        self._report(RoutePartitionTaken, partition, now, seconds=now - partition.since)

    def not_led(self, partition: Partition) -> None:
        if self._membership.phase(partition.number) is LED:
            partition.since = trio.current_time()
            if self._membership.lost(partition.number) is ELSEWHERE:
                partition.close()

    def lost(self, partition: Partition, error: SourceError) -> None:
        now = trio.current_time()
        self._report(RoutePartitionLost, partition, now, reason=error.reason, detail=str(error))

    def changed(self) -> None:
        self._show()

    def _report(self, event: type[PartitionEvent], partition: Partition, now: float, **about: Any) -> None:
        route, stream, durable = self.state.name, self._stream, self._durable
        self._emit(event(at=now, route=route, stream=stream, durable=durable, partition=partition.number, **about))

    # --- what pages show ---

    def _show(self) -> None:
        """Enter the state of the route: it runs if it has joined, and each partition of its share runs.

        A partition whose durable is paused can't be led by any process: it counts whichever member owns it.
        """
        if self._nursery is None:
            return
        trouble = next((text for _, text in self._failing.values() if text), None)
        if trouble is not None:
            self.state.enter(FAILED, trouble)
        elif not self._membership.members:
            self.state.enter(STARTING, "waiting until this process is among those that share the partitions")
        else:
            for number, partition in self._partitions.items():
                status = partition.status
                if status.state in (FAILED, PAUSED) and self._membership.phase(number) is not ELSEWHERE:
                    self.state.enter(status.state, f"partition {number}: {status.reason or status.state}")
                    return
            if self._unled.paused is not None:
                number, until = self._unled.paused
                self.state.enter(PAUSED, f"partition {number}: {until}")
                return
            self.state.enter(RUNNING)

    @property
    def _has_lead(self) -> tuple[int, ...]:
        """The partitions whose lead this process has."""
        return tuple(sorted((*self._membership.those(LED), *self._membership.those(GIVEN_UP))))

    @property
    def _led(self) -> tuple[int, ...]:
        """The partitions that this process leads: it has their lead, or would get it with the next message."""
        membership = self._membership
        idle = [one for one in membership.those(WANTED) if membership.is_share(one) and self._is_idle(one)]
        return tuple(sorted((*self._has_lead, *idle)))

    def _is_idle(self, number: int) -> bool:
        """Return True if a partition of this process has nothing to deliver, so that no lead is given."""
        partition = self._partitions.get(number)
        if partition is None or not partition.status.standby:
            return False
        behind = partition.keeper.behind
        return behind is not None and not behind.messages

    def _shown(self) -> Partitions:
        led, membership = self._led, self._membership
        lag = {number: behind.messages for number in led if (behind := self._partitions[number].keeper.behind)}
        return Partitions(
            count=membership.count,
            led=led,
            wanted=tuple(one for one in membership.those(WANTED) if membership.is_share(one) and one not in led),
            lag=lag,
            member=membership.me,
            members=membership.members,
            owners=membership.owners,
            uncopied=0 if self._found is None else self._found.lag,
        )

    def _behind(self) -> Behind | None:
        """Return how far the partitions that this process leads are behind.

        Messages that their stream does not have yet are counted by the process that leads the first partition.
        """
        each = [one for number in self._led if (one := self._partitions[number].keeper.behind) is not None]
        if each and self._found is not None and 0 in self._led:
            each.append(Behind(pending=self._found.lag))
        return Behind.of_parts(each)

    # --- the end ---

    def _look_each(self) -> None:
        for partition in self._partitions.values():
            partition.look()

    def close(self) -> None:
        super().close()
        self._go_by(self._membership.leave())
        self._wake.set()

    def keep_lead(self) -> float:
        return WHILE_ENDING_EVERY

    def retire(self) -> None:
        super().retire()
        for partition in self._partitions.values():
            partition.retire()
        self._feeding.end()

    def go_on(
        self, routing: Routing, connection: Connection, dead_letters: DeadLetters | None
    ) -> PartitionedSource | None:
        """Return a source that continues if it has the same partitions, even on a new connection; otherwise None."""
        source = routing.plan.settings.source
        same = source.kind.consumer(source) == (self._stream, self._durable)
        if not same or partitioning_of(source) != self._partitioning:
            return None
        if not connection.has_same_streams(self._connection):
            return None
        return PartitionedSource(routing, connection, self._emit, dead_letters, self, router=self._router)


def _unled_text(unled: Sequence[int], owners: Sequence[str]) -> str:
    """Return that no process leads these partitions, and why, as text."""
    text = f"no process leads {_counted('partition', unled)}, so that messages wait there"
    if owners:
        theirs = sorted({owners[number] for number in unled})
        text += f": the share of {_counted('member', theirs)}, which can't lead or does not exist"
    return f"{text}; a process that can lead stands in within seconds"


def _counted(noun: str, what: Sequence[object]) -> str:
    """Return the first of several by name, as text, and how many more there are."""
    more = f" and {len(what) - MOST_NAMED} more" if len(what) > MOST_NAMED else ""
    return f"{noun}{'s' if len(what) > 1 else ''} {', '.join(map(str, what[:MOST_NAMED]))}{more}"
