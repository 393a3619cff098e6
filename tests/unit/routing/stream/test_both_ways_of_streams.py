"""Code of routes from streams that is written twice for speed: see `test_both_ways`."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage
from router_trio.routing.delivery import Delivery
from router_trio.routing.policy import hops
from router_trio.routing.policy.retry import Failure
from router_trio.routing.schedule import ArrivalOrder, _Turn
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import StreamDelivery, columns_of, delivery_of
from router_trio.routing.stream.in_hand import StreamInHand
from router_trio.states import Exemplar, RouteState
from router_trio.testing.frames import raw
from tests.performance.instructions import Bench
from tests.support.compiled import looks_inside
from tests.unit.routing.both_ways import (
    BLOCKS,
    BODIES,
    SUBJECTS,
    bench,
    both,
    to,
)

pytestmark = looks_inside

# --- streams ---

STREAM = {"stream": "IN", "durable": "router", "filter": "in.*"}
STORED = [to("out.{{split(1,-)}}", jetstream=True)]


def delivery(number: int, subject: bytes, block: bytes, body: bytes) -> RawMessage:
    return raw(subject, b"$JS.ACK.IN.router.1.%d.%d.17000000000000%05d.9" % (number, number, number), block, body)


STREAMED = st.lists(st.tuples(SUBJECTS, BLOCKS, BODIES), max_size=6).map(
    lambda many: [delivery(number, *one) for number, one in enumerate(many, 1)]
)


@given(messages=STREAMED, own_ids=st.booleans())
def test_messages_of_a_stream_are_forwarded_as_they_would_be_one_by_one(
    messages: list[RawMessage], own_ids: bool
) -> None:
    source = STREAM | ({} if own_ids else {"message_id": "sender"})

    def way(together: bool) -> Callable[[Bench], Awaitable[None]]:
        async def run(made: Bench) -> None:
            keeper = made.stream_source().keeper
            deliveries = [delivery_of(keeper, StreamCursor("x"), one, 0.0) for one in messages]
            keeper.hand.count = len(deliveries)
            keeper.hand.cursor = StreamCursor("other")
            if together:
                made.routings[0].forward_each(deliveries)
            else:
                for one in deliveries:
                    made.routings[0].forward(one)
            made.events.append(cast(Any, [(one.remaining, one.failure, one.refused) for one in deliveries]))
            unacked = made.outbox._queue.in_flight.unacked
            made.events.append(cast(Any, [(order, one.puback_from) for order, one in unacked.items()]))

        return run

    both(lambda: bench(STORED, source=source), way(together=True), way(together=False))


SENT = st.lists(st.tuples(st.sampled_from([b"in.a", b"in.b-c"]), BLOCKS, st.binary(max_size=6)), max_size=6).map(
    lambda many: [delivery(number, *one) for number, one in enumerate(many, 1)]
)
"""Messages that no destination refuses: a refused message uses up a number only if it is sent alone."""


@given(messages=SENT)
def test_waiting_messages_are_forwarded_together_as_they_would_be_one_by_one(messages: list[RawMessage]) -> None:
    def way(together: bool) -> Callable[[Bench], Awaitable[None]]:
        async def run(made: Bench) -> None:
            source = made.stream_source()
            keeper, hand, route = source.keeper, source.keeper.hand, cast(Any, source.keeper.route)
            keeper.forwards_on_arrival = False
            source.received(messages)
            keeper.forwards_on_arrival = together
            while hand.waiting:
                assert route._begin_some() is None
            made.events.append(cast(Any, [hand.active, [*hand.open], made.naks]))

        return run

    both(lambda: bench(STORED, source=STREAM), way(together=True), way(together=False))


@pytest.mark.parametrize("behind", [0, 3])
async def test_a_turn_in_which_no_message_can_be_sent_counts_no_hop(behind: int) -> None:
    """Nothing waits any more, forwarded on arrival of later messages, or all waits behind a refused message."""
    made = bench(STORED, source=STREAM)
    source = made.stream_source()
    keeper, hand, route = source.keeper, source.keeper.hand, cast(Any, source.keeper.route)
    first, *later = [delivery(number, b"in.a", b"", b"x") for number in range(1, behind + 2)]
    source.received([first])
    keeper.forwards_on_arrival = False
    source.received(later)
    keeper.destination_refused(hand.open[1])
    keeper.forwards_on_arrival = True
    counting = made.routings[0].outlets[0].contents.hops
    assert counting is not None
    counting.sample.uncounted = hops.EVERY
    assert route._begin_some() is None
    assert len(made.written()) == 1
    assert (hand.waiting, hand.held) == (0, behind)


BY_KEY = {"key": "tokens[1]"}


@given(messages=SENT)
def test_messages_by_key_are_forwarded_together_as_they_would_be_one_by_one(messages: list[RawMessage]) -> None:
    def way(together: bool) -> Callable[[Bench], Awaitable[None]]:
        async def run(made: Bench) -> None:
            source = made.stream_source()
            keeper, hand, route = source.keeper, source.keeper.hand, cast(Any, source.keeper.route)
            assert keeper.forwards_together
            keeper._together = together
            source.received(messages)
            stored: set[int] = set()
            for _ in range(len(messages) + 1):
                assert route._begin_some() is None
                made.events.append(cast(Any, [hand.active, hand.apart, [*hand.open], made.written()]))
                sent = {
                    order: one for order, one in made.outbox._queue.in_flight.unacked.items() if order not in stored
                }
                stored |= sent.keys()
                for order, operation in sent.items():
                    assert operation.owner is not None
                    operation.owner.settle(operation, 1, Fate("acked", None, "OUT", order), 0.0)
                made.connection.listener.read_done()  # the next message of each key has its turn
            assert not hand.open
            assert len(stored) == len(messages)

        return run

    both(lambda: bench(STORED, source=STREAM, **BY_KEY), way(together=True), way(together=False))


FATES = st.sampled_from([
    Fate("acked", None, "OUT", 7),
    Fate("acked", None, "OUT", 8),
    Fate("acked", None, "OUT", 9, True),
    Fate("failed", "no_responders"),
    Fate("dropped", "expired"),
])  # fmt: skip


class _RecordingTrace:
    """A trace that records its events."""

    def __init__(self, number: int, events: list[tuple[Any, ...]]) -> None:
        self._number = number
        self._events = events

    def sent(self, destination: str, fate: Fate) -> None:
        self._events.append((self._number, destination, fate))

    def settled(self, fate: str, failure: Failure | None) -> None:
        self._events.append((self._number, fate, failure))

    def end(self, seconds: float) -> Exemplar:
        self._events.append((self._number, "end", seconds))
        return Exemplar(str(self._number), seconds, 0.0)


@given(fates=st.lists(FATES, max_size=8), own_ids=st.booleans(), traced=st.sets(st.integers(0, 7)))
def test_messages_stored_together_are_acked_as_each_would_be(
    fates: list[Fate], own_ids: bool, traced: set[int]
) -> None:
    source = STREAM | ({} if own_ids else {"message_id": "sender"})

    def way(together: bool) -> Callable[[Bench], Awaitable[None]]:
        async def run(made: Bench) -> None:
            source = made.stream_source()
            source.received([delivery(number, b"in.%d" % number, b"", b"") for number in range(1, len(fates) + 1)])
            made.written()
            trace_events: list[tuple[Any, ...]] = []
            operations = [*made.outbox._queue.in_flight.unacked.values()]
            for number, (operation, fate) in enumerate(zip(operations, fates, strict=True)):
                owner = operation.owner
                assert isinstance(owner, StreamDelivery)
                if number in traced:
                    owner.trace = cast(Any, _RecordingTrace(number, trace_events))
                if together:
                    owner.settle(operation, 1, fate, 0.0)
                else:
                    Delivery.settle(owner, operation, 1, fate, 0.0)
            made.connection.listener.read_done()
            made.answers.sort()  # messages that are only stored are acked at the end of the read
            pending = source.keeper.hand
            found = [pending.count, pending.bytes, [*pending.open], [one.sequence for one in pending.schedule.waiting]]
            made.events.append(cast(Any, [found, of_cursor(pending.cursor), trace_events]))

        return run

    both(lambda: bench(STORED, source=source), way(together=True), way(together=False))


def of_cursor(cursor: StreamCursor) -> dict[str, object]:
    fields = {name: getattr(cursor, name) for name in StreamCursor.__slots__}
    return {**fields, "failures": cursor.failures.failed}


@pytest.mark.parametrize("seed", range(40))
def test_deliveries_are_received_together_as_they_would_be_one_by_one(seed: int) -> None:
    choose = random.Random(seed)
    fast, slow = StreamInHand(), StreamInHand()
    keeper = cast(Any, _Keeper())
    found: dict[bool, list[Any]] = {True: [], False: []}
    highest = number = taken = 0
    for now in range(30):
        batch = []
        for _ in range(choose.randint(1, 5)):
            odd = choose.random() < 0.03
            number += choose.randint(2, 4) if odd else 1
            sequence = choose.randint(1, highest + 1) if odd else highest + choose.randint(1, 3)
            highest = max(highest, sequence)
            time = sequence + (choose.random() < 0.01)
            batch.append(
                raw(b"in.%d" % (sequence % 3), b"$JS.ACK.IN.router.1.%d.%d.%d.9" % (sequence, number, time), b"", b"x")
            )
        refused, done = choose.random() < 0.1, choose.random()
        for pending, together in ((fast, True), (slow, False)):
            deliveries = [delivery_of(keeper, pending.cursor, one, float(now)) for one in batch]
            back = found[together].append
            if together:
                again = pending.add(deliveries, columns_of(deliveries), 5.0, back)
            else:
                again = [one for one in deliveries if not pending._add(one, 5.0, back)]
            found[together].append([deliveries.index(one) for one in again])
            routed = pending.next_together(choose_count(done, pending.waiting))
            for place, one in enumerate(routed):
                if refused and not place and one.cursor is pending.cursor:
                    one.refused = True
                    pending.await_redelivery(one, now, now + 3.0, 5.0)
                elif refused and not place:
                    pending.give_up(one)
                else:
                    found[together].append(pending.delivered([one]))
        assert of_hand(fast) == of_hand(slow)
        taken += len(batch)
    assert [*map(of_one, found[True])] == [*map(of_one, found[False])]
    assert taken > 50


class _Keeper:
    """The keeper of the deliveries."""

    state = RouteState("r", "main", ("out",))
    copied = None

    def order_key(self, delivery: StreamDelivery) -> bytes:
        return delivery.raw[0]


def choose_count(share: float, waiting: int) -> int:
    return int(share * (waiting + 1))


def of_hand(pending: StreamInHand) -> list[Any]:
    schedule, order = pending.schedule, pending.order
    assert isinstance(schedule, ArrivalOrder)
    waiting = [one.key if isinstance(one, _Turn) else of_waiting(pending, one) for one in schedule.waiting]
    released = [of_waiting(pending, one) for heap in schedule._released.values() for _, one in heap]
    return [waiting, released, [*pending.open], pending.count, pending.bytes, [*order.lines], of_cursor(pending.cursor)]


def of_waiting(pending: StreamInHand, one: StreamDelivery) -> Any:
    return one.sequence, one.number, one.cursor is pending.cursor


def of_one(found: Any) -> Any:
    return (found.sequence, found.number) if isinstance(found, StreamDelivery) else found
