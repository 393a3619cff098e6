"""The messages that routes have in hand, under random events: each is in one place, and none is lost.

Each moves as the table of its kind says (`routing/moves.py`), and each entry of a table is needed. The machines are the
routes and their surroundings, each as simple as possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import inf
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from router_trio.errors import EvaluationError
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage
from router_trio.routing import moves
from router_trio.routing.core import in_hand as core
from router_trio.routing.core import intake_queue
from router_trio.routing.core.delivery import CoreDelivery
from router_trio.routing.in_hand import InHand
from router_trio.routing.policy.failed_messages import Numbering
from router_trio.routing.policy.key_queues import KeyQueues, _Several
from router_trio.routing.policy.limit import ValueLimits
from router_trio.routing.schedule import ArrivalOrder, KeyOrder, Limits, NoValueLimit, Order, ValueLimit, _Turn
from router_trio.routing.stream import in_hand as stream
from router_trio.routing.stream.delivery import StreamDelivery, columns_of
from router_trio.routing.stream.other_processes import TAKE_FOR
from router_trio.states import RouteState
from tests.support.compiled import COMPILED
from tests.support.drawn import DEFAULT, examples

KEYS = st.sampled_from([b"a", b"a", b"b", b"c"])
VALUES = st.sampled_from([b"none", b"fails", b"x", b"x", b"y"])
KINDS = st.tuples(st.booleans(), st.booleans())
"""Whether a route has a key, and whether its values have limits."""

ROOM = 12
OF_A_KEY = 4
LATE = 5.0
Delivery = Any
PLAN: Any = SimpleNamespace(numbering=Numbering("all", (b"out",)), settings=SimpleNamespace(when=None))
"""The parts of the plan of a route that a hand-over reads."""


M = TypeVar("M", bound=InHand[Any])


class _OneByOne(dict[moves.Event, moves.State]):
    """The moves from a state, for a hand that looks each time whether they have an event, and so moves one by one."""

    def __contains__(self, event: object) -> bool:
        return False


class Watch:
    """Follows the messages of a hand by its table alone. `reached` are the entries of the table that were used."""

    def __init__(self) -> None:
        self.states: dict[Delivery, moves.State] = {}
        self.reached: set[tuple[moves.State, moves.Event]] = set()

    def follow(self, hand: M) -> M:
        """Return the hand, whose moves are followed from now on. What is compiled can't be followed."""
        if COMPILED:
            return hand
        move, table = hand._move, hand.table

        def followed(message: Delivery, event: moves.Event, state: moves.State = moves.ACTIVE) -> None:
            known, before = hand.states.get(message, state), self.states.get(message, moves.OUTSIDE)
            move(message, event, state)
            assert before == known, f"the hand takes a message that is {before} for one that is {known}: {event!r}"
            self.states[message] = table[before][event]
            self.reached.add((before, event))

        watched: Any = hand
        watched._move, watched.table = followed, {state: _OneByOne(events) for state, events in table.items()}
        return hand

    def assert_left(self, message: Delivery, state: moves.State) -> None:
        """Assert that a message has left the hand, and where it is instead."""
        assert COMPILED or self.states[message] == state

    def assert_in(self, places: dict[moves.State, Iterable[Delivery]]) -> None:
        """Assert that each message is where the table says, and that no other one is in hand."""
        if not COMPILED:
            found = {one: state for state, messages in places.items() for one in messages}
            left = (moves.OUTSIDE, moves.RETURNED)
            assert {one: state for one, state in self.states.items() if state not in left} == found


def assert_known(hand: InHand[Any], limited: list[Delivery], held: list[Delivery], handled: list[Delivery]) -> None:
    """Assert that the hand knows the states of these messages, and of no others."""
    known = [(moves.LIMITED, limited), (moves.HELD, held), (moves.IN_HANDLER, handled)]
    assert hand.states == {one: state for state, messages in known for one in messages}


def entries(table: moves.Moves) -> set[tuple[moves.State, moves.Event]]:
    return {(state, event) for state, events in table.items() for event in events}


def raw(key: bytes, value: bytes, reply: bytes = b"") -> RawMessage:
    """Return a message with the key as its subject and the value as its payload."""
    return key, reply, 0, len(value), value


def value_of(delivery: Delivery) -> bytes | None:
    value: bytes = delivery.raw[4]
    if value == b"fails":
        raise EvaluationError("no value")
    return None if value == b"none" else value


def limits_of(has_no_value: Any, place_of: Any) -> Limits[Any]:
    limits = ValueLimits(1, 1, 1)
    return ValueLimit(limits, value_of, place_of, has_no_value, lambda: None, lambda: None)


def waiting_in(schedule: Order[Any]) -> list[Delivery]:
    """Return the messages that wait in an order."""
    found = [one for one in schedule.waiting if not isinstance(one, _Turn)]
    if isinstance(schedule, ArrivalOrder):
        found += [delivery for released in schedule._released.values() for _, delivery in released]
    for _, one in keys_of(schedule):
        found += [delivery for _, _, delivery in one.waiting]
    return found


def keys_of(schedule: Order[Any]) -> Iterable[tuple[bytes, Any]]:
    """Return the state that an order keeps for each key."""
    if not isinstance(schedule, KeyOrder):
        return ()
    keys: KeyQueues[Any] = schedule._keys
    return [*keys._keys.items()]


def limited_in(limits: Limits[Any]) -> list[Delivery]:
    """Return the messages that wait for the limits of values."""
    if not isinstance(limits, ValueLimit):
        return []
    return [delivery for queue in limits._queues._queues.values() for _, _, delivery in queue]


def assert_in_one_place(deliveries: list[Delivery]) -> None:
    assert not [one for one, times in Counter(map(id, deliveries)).items() if times > 1], "in two places"


def assert_keys_are_used(schedule: Order[Any], active: list[Delivery]) -> None:
    """Assert that each known key has a waiting or active message, and that an active key has an active delivery."""
    assert schedule.count == len(waiting_in(schedule))
    for _, one in keys_of(schedule):
        assert one.waiting or one.active is not None
        waits_for = one.active.items if isinstance(one.active, _Several) else [one.active]
        assert one.active is None or all(message in active for message in waits_for), "a key waits for nothing"


def routed_some(machine: Any) -> bool:
    """Return True if a machine may begin again: if it always did, its messages would see nothing else."""
    return bool(machine.routed >= 3)


class CoreMachine(RuleBasedStateMachine):
    """A route from a core subscription that retries failed messages and is replaced at a reload."""

    watch = Watch()

    @initialize(kind=KINDS)
    def begin(self, kind: tuple[bool, bool]) -> None:
        self.patches = [patch.object(intake_queue, "MAX_MESSAGES", ROOM)]
        for one in self.patches:
            one.start()
        self.now = 1.0
        self.received = self.settled = self.refused = 0
        self.by_key = False
        self.watch.states.clear()
        self.hand = self.made(kind)
        self.active: list[CoreDelivery] = []
        self.handled: list[CoreDelivery] = []
        """The active ones whose handlers have not returned."""
        self.routed = 0

    def made(self, kind: tuple[bool, bool]) -> core.SubjectInHand:
        self.by_key, limited = kind

        def place(delivery: CoreDelivery) -> int:
            return delivery.place

        def no_value(delivery: CoreDelivery, error: EvaluationError) -> None:
            self.settled += 1
            hand.settle(delivery)

        def too_many(delivery: CoreDelivery) -> None:
            self.refused += 1
            hand.refuse(delivery)

        order: Order[CoreDelivery] = ArrivalOrder(lambda delivery: delivery.raw[0], place)
        if self.by_key:
            order = KeyOrder(lambda delivery: delivery.raw[0], place, OF_A_KEY, too_many)
        hand = core.SubjectInHand(order, limits_of(no_value, place) if limited else NoValueLimit(), lambda: b"")
        return self.watch.follow(hand)

    # --- what happens ---

    @rule(messages=st.lists(st.tuples(KEYS, VALUES), max_size=6))
    def receive(self, messages: list[tuple[bytes, bytes]]) -> None:
        route: Any = RouteState("route", "main", ("out",))
        batch = [raw(key, value, b"%d" % number) for number, (key, value) in enumerate(messages, self.received)]
        self.received += len(messages)
        self.refused += self.hand.add(route, route, batch, self.now)

    @rule(handled=st.sampled_from([True, False, True]))
    def route(self, handled: bool) -> None:
        waits = self.hand.ready(self.now)
        delivery = self.hand.next(self.now)
        if delivery is None:
            assert not (isinstance(self.hand.schedule, ArrivalOrder) and self.hand.schedule.count)
            assert not self.hand.ready(self.now), "the task that waits for ready would never wait"
            return
        assert waits, "the task that waits for ready would wait for ever"
        assert not any(one is delivery for one in self.active)
        self.active.append(delivery)
        self.routed += 1
        if handled:
            self.hand.handler_blocks(delivery)
            self.handled.append(delivery)

    @precondition(lambda self: self.handled)
    @rule(index=st.integers(0, 9))
    def handler_returns(self, index: int) -> None:
        self.hand.handler_returned(self.handled.pop(index % len(self.handled)))

    def taken(self, index: int) -> CoreDelivery:
        """Return an active message, which is settled or fails next. Its handler returns after that at the latest."""
        delivery = self.active.pop(index % len(self.active))
        if delivery in self.handled:
            self.handled.remove(delivery)
        return delivery

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9))
    def settle(self, index: int) -> None:
        self.settled += 1
        delivery = self.taken(index)
        self.hand.settle(delivery)
        self.hand.handler_returned(delivery)

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9), delay=st.sampled_from([0.0, 1.0, 3.0]), copied=st.booleans())
    def fail(self, index: int, delay: float, copied: bool) -> None:
        delivery = self.taken(index)
        if copied:
            delivery.copied(0)
        delivery.known.attempts += 1
        assert self.hand.retry(delivery, self.now + delay)
        self.hand.handler_returned(delivery)

    @rule(seconds=st.sampled_from([0.4, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(routed_some)
    @rule(kind=KINDS, late=st.integers(0, 3))
    def reload(self, kind: tuple[bool, bool], late: int) -> None:
        """Change the settings. `late` messages that were active then fail afterwards, one after another."""
        self.routed = 0
        before, active = self.hand, self.active
        places = {id(one): one.place for one in [*waiting_in(before.schedule), *limited_in(before.limits)]}
        due = {one.reply: (one.attempt, one.due) for _, _, _, one in before.retries._waiting}
        taken = before.take_back()
        assert [one.place for one in taken] == sorted(one.place for one in taken)
        assert {*places} <= {id(one) for one in taken}, "messages not begun are handed over"
        assert before.count == len(active) + len(before.retries)
        self.hand, self.active = self.made(kind), []
        route: Any = RouteState("route", "main", ("out",))
        for one in taken:
            one.go_by(route, route, PLAN, PLAN)
        self.hand.continue_order(before, taken)
        for one in active:
            self.hand.schedule.activate(one)
        failed = [active.pop() for _ in range(min(late, len(active)))]
        for one in failed:
            before.settle(one)
            one.known.attempts += 1
            one.due = self.now
            one.go_by(route, route, PLAN, PLAN)
            self.hand.add_in_place(one)
            self.hand.schedule.finished(one)
        for one in active:
            if self.by_key:
                taken_now = {id(other) for other in self.hand.schedule.active}
                assert id(one) in taken_now, "its key is not free"
            self.hand.schedule.finished(one)
        self.handled.clear()
        self.finish(before, active)
        in_order = sorted([*taken, *failed], key=lambda one: one.place)
        assert [one.raw for one in waiting_in(self.hand.schedule)] == [one.raw for one in in_order]
        places_now = [one.place for one in waiting_in(self.hand.schedule)]
        assert places_now == sorted(places_now)
        now_due = {one.reply: (one.attempt, one.due) for one in waiting_in(self.hand.schedule) if one.attempt > 1}
        assert due.items() <= now_due.items(), "it is retried when it was to be"

    def finish(self, hand: core.SubjectInHand, active: list[CoreDelivery]) -> None:
        """Route everything that is left; nothing fails any more."""
        current = self.hand, self.active
        self.hand, self.active = hand, active
        for _ in range(1000):
            while self.active:
                self.settle(0)
            if not hand.count:
                break
            self.now = max(self.now, hand.due_at if hand.due_at < inf else self.now)
            self.route(handled=False)
        assert not hand.count, "held for ever"
        assert not hand.waiting
        assert not keys_of(hand.schedule), "keys are not forgotten"
        assert not hand._bytes
        self.hand, self.active = current

    @precondition(routed_some)
    @rule(kind=KINDS, raised=st.booleans())
    def end(self, kind: tuple[bool, bool], raised: bool) -> None:
        """Drop everything that is not sent, twice, as a router may do; sent messages are settled later.

        `raised`: a handler has ended the route, at once or after it had blocked.
        """
        self.routed = 0
        for one in [*self.handled[:1], *self.active[-1:]] if raised else []:
            if one in self.active:
                self.hand.put_back(self.taken(self.active.index(one)))
        sent = [one for one in self.active if one not in self.handled]
        dropped = len(self.hand.take_unrouted())
        assert not self.hand.take_unrouted()
        assert self.hand.count == len(sent)
        for one in sent:
            self.hand.settle(one)
        assert not self.hand.count
        self.settled += dropped + len(sent)
        self.hand, self.active = self.made(kind), []
        self.handled.clear()

    @rule()
    def give_up_held(self) -> None:
        """Store the dead letters of messages that wait for their next attempt, since the route ends."""
        self.active += self.hand.take_held()

    # --- invariants ---

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        hand = self.hand
        waits, limited = waiting_in(hand.schedule), limited_in(hand.limits)
        retried = [one for _, _, _, one in hand.retries._waiting]
        assert_in_one_place([*waits, *limited, *retried, *self.active])
        assert hand.count == len(waits) + len(limited) + len(retried) + len(self.active)
        sent = [one for one in self.active if one not in self.handled]
        assert (hand.waiting, hand.active, hand.in_handler) == (len(waits), len(sent), self.handled)
        assert_known(hand, limited, retried, self.handled)
        self.watch.assert_in(
            {
                moves.WAITING: waits,
                moves.LIMITED: limited,
                moves.HELD: retried,
                moves.IN_HANDLER: self.handled,
                moves.ACTIVE: sent,
            }
        )
        assert self.received == hand.count + self.settled + self.refused
        assert hand._bytes == sum(len(one.raw[4]) for one in [*waits, *limited])

    @invariant()
    def a_key_waits_for_something(self) -> None:
        if self.by_key:
            retried = [one for _, _, _, one in self.hand.retries._waiting]
            limited = limited_in(self.hand.limits)
            assert_keys_are_used(self.hand.schedule, [*limited, *retried, *self.active])
            begun = Counter(one.raw[0] for one in [*limited, *retried, *self.active])
            assert all(count == 1 for count in begun.values()), "two of a key"

    def teardown(self) -> None:
        if hasattr(self, "hand"):
            self.finish(self.hand, self.active)
            for one in self.patches:
                one.stop()


class Generation:
    """A generation of a route from a stream: the source of its deliveries, and their state."""

    copied = None
    is_over = False

    def __init__(self) -> None:
        self.state = RouteState("route", "main", ("out",))

    def take(self, delivery: StreamDelivery, *, same_order: bool) -> None:
        keeper: Any = self
        delivery.keeper, delivery.route = keeper, self.state

    def order_key(self, delivery: StreamDelivery) -> bytes:
        return delivery.raw[0]

    def give_key(self, delivery: StreamDelivery) -> bytes:
        return self.order_key(delivery)

    def passes_by(self, delivery: StreamDelivery) -> bool:
        return False


class StreamMachine(RuleBasedStateMachine):
    """A route from a stream, its consumer and its destinations. Generations of the route follow each other."""

    watch = Watch()

    @initialize(kind=KINDS)
    def begin(self, kind: tuple[bool, bool]) -> None:
        self.now = 1.0
        self.watch.states.clear()
        self.hand = self.watch.follow(stream.StreamInHand())
        self.generation: Any = Generation()
        self.generations: list[Any] = []
        self.kind = kind
        self.go_by(kind, None, same_order=True)
        self.active: list[StreamDelivery] = []
        self.handled: list[StreamDelivery] = []
        """The active ones whose handlers have not returned."""
        self.routed = 0
        self.sequence = self.number = self.incarnation = 0
        self.messages: dict[int, tuple[bytes, bytes]] = {}
        """All messages of the current stream that are neither settled nor gone."""
        self.again: list[int] = []
        """Returned messages that the consumer will redeliver."""
        self.disturbed: set[tuple[int, bytes]] = set()
        """Keys for which the wait for a message was ended, each with the number of streams before that."""
        self.delivered: dict[bytes, list[tuple[int, int]]] = {}
        self.hand.stream_replaced("0")

    def go_by(self, kind: tuple[bool, bool], before: Any, *, same_order: bool) -> None:
        self.by_key, limited = self.kind = kind
        order: Order[StreamDelivery] = ArrivalOrder(lambda delivery: delivery.raw[0], stream.place_of)
        if self.by_key:
            order = KeyOrder(lambda delivery: delivery.raw[0], stream.place_of)
        limits = limits_of(self.has_no_value, stream.place_of) if limited else NoValueLimit[StreamDelivery]()
        holds_back = (lambda delivery: True) if self.by_key else stream.was_refused
        self.hand.go_by(self.generation, before, order, limits, holds_back, same_order=same_order)
        if before is not None:
            self.generations.append((before.state, self.hand.left_by(before.state)))

    def has_no_value(self, delivery: StreamDelivery, error: EvaluationError) -> None:
        """Give up a message that fails for want of a value."""
        if self.hand.give_up(delivery):
            del self.messages[delivery.sequence]

    # --- deliveries of the consumer ---

    def deliver(self, sequences: list[int]) -> list[StreamDelivery]:
        deliveries = []
        for sequence in sequences:
            self.number += 1
            key, value = self.messages[sequence]
            time = self.incarnation * 1000 + sequence
            subject = ack_reply.subject(b"IN", b"router", sequence=sequence, number=self.number, time=time)
            made = raw(key, value, subject)
            deliveries.append(
                StreamDelivery(
                    self.generation, self.hand.cursor, made, self.now, sequence, self.number, b"%d" % time, b""
                )
            )
        return self.hand.add(deliveries, columns_of(deliveries), 100.0, self.unexpected_rollback)

    def unexpected_rollback(self, delivery: StreamDelivery) -> None:
        raise AssertionError("the stream did not go back")

    @rule(messages=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4))
    def store(self, messages: list[tuple[bytes, bytes]]) -> None:
        first = self.sequence + 1
        for one in messages:
            self.sequence += 1
            self.messages[self.sequence] = one
        assert self.deliver([*range(first, self.sequence + 1)]) == []

    @precondition(lambda self: self.again)
    @rule(index=st.integers(0, 9))
    def redeliver(self, index: int) -> None:
        assert self.deliver([self.again.pop(index % len(self.again))]) == []

    @precondition(lambda self: self.hand.open)
    @rule(index=st.integers(0, 9))
    def redeliver_what_is_in_hand(self, index: int) -> None:
        sequence = sorted(self.hand.open)[index % len(self.hand.open)]
        assert len(self.deliver([sequence])) == 1

    @precondition(lambda self: self.again)
    @rule(index=st.integers(0, 9), exists=st.booleans())
    def wait_no_longer(self, index: int, exists: bool) -> None:
        """Stop waiting for a message that seems to be elsewhere. It may still be redelivered, or is gone."""
        sequence = self.again[index % len(self.again)]
        self.disturbed.add((self.hand.cursor.streams_before, self.messages[sequence][0]))
        if exists:
            self.hand.wait_no_longer([sequence])
        else:
            self.again.remove(sequence)
            del self.messages[sequence]
            self.hand.give_up_waiting([sequence])

    @precondition(routed_some)
    @rule()
    def stream_is_replaced(self) -> None:
        self.routed = 0
        self.incarnation += 1
        self.sequence = self.number = 0
        self.messages.clear()
        self.again.clear()
        self.hand.stream_replaced(str(self.incarnation))
        assert not self.hand.open

    # --- routing ---

    @rule(handled=st.sampled_from([True, False, True]))
    def route(self, handled: bool) -> None:
        hand = self.hand
        waits = hand.schedule.ready or hand.limits.due_at <= self.now
        delivery = hand.next(self.now)
        if delivery is None:
            assert not hand.schedule.ready
            assert hand.limits.due_at > self.now
            return
        assert waits, "the task that waits for ready would wait for ever"
        self.active.append(delivery)
        self.routed += 1
        if handled:
            hand.handler_blocks(delivery)
            self.handled.append(delivery)

    @precondition(lambda self: not self.kind[1])
    @rule(most=st.integers(1, 4))
    def route_together(self, most: int) -> None:
        self.active += self.hand.next_together(most)

    @precondition(lambda self: self.handled)
    @rule(index=st.integers(0, 9))
    def handler_returns(self, index: int) -> None:
        self.hand.handler_returned(self.handled.pop(index % len(self.handled)))

    def taken(self, index: int) -> StreamDelivery:
        """Return an active message, which is settled or fails next. Its handler returns after that at the latest."""
        delivery = self.active.pop(index % len(self.active))
        if delivery in self.handled:
            self.handled.remove(delivery)
        return delivery

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9))
    def settle(self, index: int) -> None:
        delivery = self.taken(index)
        self.hand.delivered([delivery])
        self.watch.assert_left(delivery, moves.OUTSIDE)
        self.hand.handler_returned(delivery)
        key = delivery.raw[0]
        if delivery.cursor is self.hand.cursor:
            del self.messages[delivery.sequence]
        if self.by_key:
            self.delivered.setdefault(key, []).append((delivery.cursor.streams_before, delivery.sequence))

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9), refused=st.booleans())
    def fail(self, index: int, refused: bool) -> None:
        delivery = self.taken(index)
        hand = self.hand
        delivery.refused = refused
        if delivery.cursor is hand.cursor:
            hand.await_redelivery(delivery, self.now, self.now + 1.0, LATE)
            self.returned(delivery)
        else:
            hand.give_up(delivery)
        hand.handler_returned(delivery)

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9))
    def give_up(self, index: int) -> None:
        delivery = self.taken(index)
        if self.hand.give_up(delivery):
            del self.messages[delivery.sequence]
        self.watch.assert_left(delivery, moves.OUTSIDE)

    @precondition(lambda self: self.active)
    @rule(index=st.integers(0, 9))
    def refuse_at_one_destination(self, index: int) -> None:
        """Refuse a message at one destination before others have answered: recall what is behind it, then fail it."""
        index %= len(self.active)
        refused = self.active[index]
        self.hand.hold_back_behind(refused, self.now)
        for delivery in [one for one in self.active if one is not refused and self.hand.passes_by(one)]:
            self.taken(self.active.index(delivery))
            if delivery.keeper is self.generation:
                self.hand.take_back(delivery)
            else:
                self.return_([delivery], [])  # an earlier generation routes nothing any more
        self.fail(self.active.index(refused), True)

    @rule(seconds=st.sampled_from([0.4, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- returned ---

    @rule()
    def return_newest(self) -> None:
        delivery = self.hand.return_newest(self.now + 1.0, LATE)
        if delivery is not None:
            self.returned(delivery)

    def returned(self, delivery: StreamDelivery) -> None:
        self.watch.assert_left(delivery, moves.RETURNED)
        self.again.append(delivery.sequence)

    def return_(self, deliveries: list[StreamDelivery], in_handler: list[StreamDelivery]) -> None:
        hand = self.hand
        ours = [one for one in (*in_handler, *deliveries) if one.cursor is hand.cursor]
        hand.await_at_once(ours, self.now)
        for delivery in deliveries:
            if hand.give_back(delivery):
                self.returned(delivery)

    @rule()
    def nothing_arrives(self) -> None:
        """Return messages that can't continue; the others continue, or wait for active ones."""
        while stuck := self.hand.take_stuck():
            self.return_(stuck, [])
        assert self.hand.count == 0 or self.active or self.hand.schedule.count, "the route would never end"

    @precondition(routed_some)
    @rule(limited=st.booleans(), raised=st.booleans())
    def reload(self, limited: bool, raised: bool) -> None:
        """Return everything that was not sent, and continue with another generation of the route.

        `raised`: a handler has ended the route, at once or after it had blocked.
        """
        self.routed = 0
        hand = self.hand
        for one in [*self.handled[:1], *self.active[-1:]] if raised else []:
            if one in self.active and one.keeper is self.generation:
                hand.put_back(self.taken(self.active.index(one)))
        in_handler = [*self.handled]
        unrouted = hand.take_unrouted()
        ours = [one.sequence for one in unrouted if one.cursor is hand.cursor]
        assert ours == sorted(ours), "returned in the order of the stream"
        self.return_(unrouted, in_handler)
        for delivery in in_handler:
            self.taken(self.active.index(delivery))
            if hand.give_back(delivery):
                self.returned(delivery)
        assert hand.count == len(self.active)
        before, self.generation = self.generation, Generation()
        self.go_by((self.by_key, limited), before, same_order=True)
        hand.wait_behind(before.state, self.now)

    @precondition(routed_some)
    @rule(kind=KINDS, same_order=st.sampled_from([True, True, False]))
    def change_settings(self, kind: tuple[bool, bool], same_order: bool) -> None:
        """Continue with another generation of the route, while what was sent or is in a handler is active."""
        self.routed = 0
        before, self.generation = self.generation, Generation()
        if not (same_order and self.by_key):  # several of a key may be active, or have failed
            self.disturbed.update((self.hand.cursor.streams_before, key) for key in (b"a", b"b", b"c"))
        self.go_by(kind, before, same_order=same_order)
        assert not [one for one in self.active if one.route is self.generation.state], "they keep their settings"
        waiting = [one for one in self.hand.open.values() if one not in self.active]
        assert all(one.route is self.generation.state for one in waiting), "these have the new settings"

    # --- invariants ---

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        hand = self.hand
        waits, limited = waiting_in(hand.schedule), limited_in(hand.limits)
        held = [one for line in hand.order.lines.values() for one in line.held.values()]
        assert hand.order.held == len(held)
        assert hand.order.awaited == sum(len(line.awaited) for line in hand.order.lines.values())
        everything = [*waits, *limited, *held, *self.active]
        assert_in_one_place(everything)
        assert hand.count == len(everything)
        assert hand.bytes == sum(one.raw[3] for one in everything)
        assert (hand.waiting, hand.limits.count) == (len(waits), len(limited))
        sent = [one for one in self.active if one not in self.handled]
        assert (hand.active, hand.in_handler) == (len(sent), self.handled)
        assert_known(hand, limited, held, self.handled)
        self.watch.assert_in(
            {
                moves.WAITING: waits,
                moves.LIMITED: limited,
                moves.HELD: held,
                moves.IN_HANDLER: self.handled,
                moves.ACTIVE: sent,
            }
        )
        for state, generation in self.generations:
            assert generation.in_hand == sum(one.route is state for one in self.active)
        assert hand.in_hand == sum(one.route is self.generation.state for one in everything)
        ours = {one.sequence: one for one in everything if one.cursor is hand.cursor}
        assert ours == hand.open
        assert sorted([*ours, *self.again]) == sorted(self.messages), "the stream has the messages that are not in hand"

    @invariant()
    def a_key_waits_for_something(self) -> None:
        if self.by_key:
            assert_keys_are_used(self.hand.schedule, [*limited_in(self.hand.limits), *self.active])
            stream = self.hand.cursor.streams_before
            ours = Counter(one.raw[0] for one in self.active if one.cursor is self.hand.cursor)
            assert all(count == 1 for key, count in ours.items() if (stream, key) not in self.disturbed), "two of a key"

    @invariant()
    def each_key_is_in_order(self) -> None:
        for key, delivered in self.delivered.items():
            in_order = [one for one in delivered if (one[0], key) not in self.disturbed]
            assert in_order == sorted(in_order)

    def teardown(self) -> None:
        """Redeliver everything, and fail nothing any more: then no message is left waiting."""
        if not hasattr(self, "hand"):
            return
        hand = self.hand
        for _ in range(1000):
            while self.again:
                self.redeliver(0)
            while self.active:
                self.settle(0)
            if not hand.count:
                break
            if not hand.schedule.ready and hand.limits.due_at < inf:
                self.now = max(self.now, hand.limits.due_at)
            self.route(handled=False)
        assert not hand.count, "held for ever"
        self.each_message_is_in_one_place()
        self.each_key_is_in_order()
        assert not self.messages
        assert not hand.order.lines, "awaited for ever"
        assert not keys_of(hand.schedule), "keys are not forgotten"


TRIES = 20
"""Most runs of a machine until each entry of its table was used. One run may miss rare ones, and a dead one stays."""

MACHINES: list[tuple[Any, moves.Moves]] = [(CoreMachine, moves.SUBJECT), (StreamMachine, moves.STREAM)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("machine", "table"), MACHINES)
def test_messages_move_as_the_table_says(machine: Any, table: moves.Moves) -> None:
    # Also where CI is set, which makes Hypothesis draw the same in each run: then a second run would reach no more.
    drawn = settings(max_examples=examples(200), stateful_step_count=40, deadline=None, derandomize=False)
    complete = not COMPILED and examples(DEFAULT) >= DEFAULT
    machine.watch.reached.clear()
    for _ in range(TRIES if complete else 1):
        run_state_machine_as_test(machine, settings=drawn)
        if machine.watch.reached == entries(table):
            break
    assert not complete or machine.watch.reached == entries(table), "an entry that no message needs"


def test_a_move_that_the_table_lacks_names_the_message() -> None:
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none"), (b"a", b"none")])
    machine.route(handled=True)
    with pytest.raises(AssertionError, match="is in a handler can't move by 'blocked': 'a', sequence 1"):
        machine.hand.handler_blocks(machine.active[0])
    machine.hand.states[machine.hand.open[2]] = moves.HELD
    with pytest.raises(AssertionError, match="is held can't move by 'turn': 'a', sequence 2"):
        machine.hand.next_together(2)


def test_a_message_is_not_settled_while_it_waits_for_its_next_attempt() -> None:
    machine = CoreMachine()
    machine.begin((False, False))
    machine.receive([(b"a", b"none")])
    machine.route(handled=False)
    delivery = machine.active[0]
    machine.fail(0, delay=1.0, copied=False)
    with pytest.raises(AssertionError, match=r"is held can't move by 'settled': 'a'$"):
        machine.hand.settle(delivery)
    machine.patches[0].stop()


def test_messages_held_behind_a_returned_message_wait_again() -> None:
    """The older of two refused messages seemed to be elsewhere; it is redelivered while the other is tried, and
    limited.
    """
    machine = StreamMachine()
    machine.begin((False, True))
    machine.store([(b"a", b"none"), (b"a", b"x")])
    for _ in range(2):
        machine.route(handled=False)
    for _ in range(2):
        machine.fail(0, refused=True)
    machine.wait_no_longer(0, exists=True)
    machine.redeliver(1)
    machine.route(handled=False)
    machine.redeliver(0)
    machine.each_message_is_in_one_place()
    machine.nothing_arrives()
    machine.each_message_is_in_one_place()
    machine.teardown()


def test_released_messages_are_routed_before_later_ones_that_still_wait() -> None:
    """A refused message is given up while those behind it wait for the route's limit, before the route looks at
    them.
    """
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none"), (b"a", b"none"), (b"b", b"none"), (b"a", b"none"), (b"b", b"none")])
    for _ in range(2):
        machine.route(handled=False)
    refused, behind = machine.active
    machine.hand.hold_back_behind(refused, machine.now)
    assert machine.hand.passes_by(behind)
    machine.hand.take_back(machine.taken(1))
    machine.give_up(0)
    for _ in range(4):
        machine.route(handled=False)
    routed = [one.sequence for one in machine.active]
    assert [one for one in routed if one in (2, 4)] == [2, 4]
    assert [one for one in routed if one in (3, 5)] == [3, 5]
    machine.teardown()


def test_a_message_that_waited_for_its_limit_does_not_overtake_one_released_before() -> None:
    machine = StreamMachine()
    machine.begin((False, True))
    machine.store([(b"a", b"none"), (b"a", b"none"), (b"a", b"x"), (b"a", b"x")])
    for _ in range(3):
        machine.route(handled=False)
    assert machine.hand.next(machine.now) is None
    assert machine.hand.limits.count == 1
    refused, *behind = machine.active
    machine.hand.hold_back_behind(refused, machine.now)
    for delivery in behind:
        assert machine.taken(1) is delivery
        machine.hand.take_back(delivery)
    machine.give_up(0)
    for _ in range(6):
        machine.time_passes(1.0)
        machine.route(handled=False)
        machine.each_message_is_in_one_place()
    assert [one.sequence for one in machine.active] == [2, 3, 4]
    machine.teardown()


def test_a_message_redelivered_after_it_was_reported_gone_may_fail_and_be_redelivered_again() -> None:
    """The report of the stream is older than the redelivery."""
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none")])
    machine.route(handled=False)
    machine.fail(0, refused=True)
    machine.redeliver(0)
    machine.hand.give_up_waiting([1])
    machine.route(handled=False)
    machine.fail(0, refused=True)
    machine.redeliver(0)
    machine.each_message_is_in_one_place()
    machine.teardown()


def test_returned_messages_are_not_awaited_if_other_processes_use_the_durable() -> None:
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none"), (b"a", b"none")])
    others = machine.hand.others
    others.ack_wait = TAKE_FOR - 5
    for _ in range(int(TAKE_FOR) + 1):
        others.missed(1, machine.now)
        machine.now += 1.0
    machine.reload(limited=False, raised=False)
    assert not machine.hand.order.lines
    machine.teardown()


def test_a_route_with_another_key_does_not_wait_for_messages_awaited_by_the_old_one() -> None:
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none")])
    machine.route(handled=False)
    machine.fail(0, refused=True)
    assert machine.hand.order.awaited == 1
    machine.go_by((True, False), machine.generation, same_order=False)
    assert machine.hand.order.awaited == 0
    machine.teardown()


def test_a_route_with_another_key_waits_for_messages_that_the_old_one_returned_at_its_end() -> None:
    machine = StreamMachine()
    machine.begin((False, False))
    machine.store([(b"a", b"none"), (b"a", b"none")])
    machine.reload(limited=False, raised=False)
    machine.go_by((True, False), machine.generation, same_order=False)
    assert machine.hand.order.returned() == [1, 2]
    machine.teardown()
