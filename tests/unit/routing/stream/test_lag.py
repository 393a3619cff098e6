"""How far a route is behind its stream: what is learned from deliveries and from checks, and what is shown of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.link import ConsumerState, StoredAt
from router_trio.protocol import ack_reply
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.lag import UNKNOWN_AFTER, Lag
from router_trio.routing.stream.pulling import checks
from router_trio.states import Behind
from router_trio.telemetry.http.status import status
from tests.support.eventually import eventually
from tests.support.world import LOCAL, REMOTE, World, fill, handled, one_broker, stream, to, two_brokers, world

EPOCH = 1_700_000_000
TRUE_WITHIN = 5.0


def nanoseconds(at: float) -> int:
    """Return the time of the stream at a time of the router."""
    return int((EPOCH + at) * 1e9)


class Reader:
    """A lag with the cursor of its route, and a server whose clock is that of the router, plus `EPOCH`."""

    def __init__(self) -> None:
        self.lag = Lag()
        self.cursor = StreamCursor()
        self.now = 100.0

    def delivered(self, sequence: int, *, pending: int, stored_at: float) -> None:
        """Receive the next delivery of the consumer."""
        number, time = self.cursor.deliveries + 1, nanoseconds(stored_at)
        self.cursor.mark_received(sequence, number, b"%d" % time, self.now, 60.0)
        self.lag.received += 1
        self.lag.last_at = self.now
        self.lag.last_reply = ack_reply.subject(
            b"IN", b"router", sequence=sequence, number=number, time=time, pending=pending
        )

    def settled(self, sequence: int) -> None:
        self.cursor.mark_settled([sequence], [self.cursor.time_of(sequence)])

    def state(self, *, undelivered: int = 0, unacked: int = 0, oldest: StoredAt | None = None) -> ConsumerState:
        return ConsumerState(None, unacked, 1000, 0, undelivered, oldest=oldest, time=nanoseconds(self.now))

    def check(self, meanwhile: Callable[[], object] = lambda: None, **state: Any) -> None:
        """Check the consumer. `meanwhile` happens between the request and the answer."""
        asked, answer = self.lag.asks(self.cursor, self.now), self.state(**state)
        meanwhile()
        self.lag.checked(asked, answer, self.cursor, self.now)

    @property
    def behind(self) -> Behind | None:
        return self.lag.behind(self.cursor, self.now)

    @property
    def shown(self) -> tuple[int, float] | None:
        return None if self.behind is None else (self.behind.messages, round(self.behind.seconds, 3))


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_nothing_is_known_before_a_delivery_or_a_check(reader: Reader) -> None:
    assert reader.shown is None
    reader.check()
    assert reader.shown == (0, 0.0)


def test_a_delivery_counts_itself_and_what_is_pending_behind_it(reader: Reader) -> None:
    reader.check()
    reader.delivered(1, pending=41, stored_at=97.0)
    assert reader.shown == (42, 3.0)
    reader.settled(1)
    reader.now += 1.0
    reader.delivered(2, pending=40, stored_at=98.0)
    assert reader.shown == (41, 3.0)


def test_a_reply_subject_with_domain_and_account_is_read(reader: Reader) -> None:
    reader.check()
    reader.delivered(1, pending=0, stored_at=100.0)
    reader.lag.last_reply = b"$JS.ACK.hub.ACCOUNT.IN.router.1.1.1.%d.7.random" % nanoseconds(100.0)
    assert reader.shown == (8, 0.0)


@pytest.mark.parametrize("pending", [b"", b"x", b"9" * 400, b"-1"])
def test_a_forged_number_of_pending_messages_does_no_harm(pending: bytes, reader: Reader) -> None:
    reader.check()
    reader.delivered(1, pending=0, stored_at=100.0)
    reader.lag.last_reply = b"$JS.ACK.IN.router.1.1.1.1." + pending
    assert reader.shown is not None
    assert 1 <= reader.shown[0] <= 2**64


def test_a_check_counts_what_was_stored_since_the_last_delivery(reader: Reader) -> None:
    reader.delivered(1, pending=0, stored_at=100.0)
    reader.check(undelivered=5, unacked=1)
    assert reader.shown == (6, 0.0)


def test_a_delivery_during_a_check_is_newer_than_its_answer(reader: Reader) -> None:
    reader.check(lambda: reader.delivered(1, pending=3, stored_at=100.0), undelivered=9)
    assert reader.shown == (4, 0.0)


@pytest.mark.parametrize(
    ("unacked", "elsewhere"),
    [(2, 0), (3, 0), (4, 0), (9, 5), (1, -1)],
    ids=["as before", "as afterwards", "all that was received", "others have five", "others have settled one"],
)
def test_unacked_messages_beyond_those_here_are_elsewhere(unacked: int, elsewhere: int, reader: Reader) -> None:
    for sequence in (1, 2, 3):
        reader.delivered(sequence, pending=0, stored_at=100.0)

    def meanwhile() -> None:
        reader.delivered(4, pending=0, stored_at=100.0)
        reader.settled(1)

    reader.check(meanwhile, unacked=unacked)
    assert reader.behind is not None
    assert (reader.behind.unsettled, reader.behind.elsewhere) == (3, elsewhere)
    assert reader.behind.messages == 3 + elsewhere


def test_it_is_unknown_after_some_seconds_without_a_delivery_or_an_answer(reader: Reader) -> None:
    reader.check(undelivered=5)
    reader.now += UNKNOWN_AFTER
    assert reader.shown is not None
    reader.now += 0.1
    assert reader.shown is None
    reader.delivered(1, pending=4, stored_at=100.0)
    assert reader.shown is not None
    reader.lag.forget()
    assert reader.shown is None, "a delivery of a consumer that is gone"


def test_a_standby_counts_all_that_the_server_has(reader: Reader) -> None:
    reader.delivered(1, pending=0, stored_at=90.0)  # when it had the lead
    reader.lag.forget()
    reader.lag.checked_by_standby(
        reader.state(undelivered=5, unacked=2, oldest=StoredAt(3, nanoseconds(96.0))), reader.now
    )
    assert reader.shown == (7, 4.0)


def test_no_check_is_needed_while_deliveries_would_show_what_is_stored(reader: Reader) -> None:
    assert not reader.lag.stays_known(True, reader.now), "nothing is known"
    reader.check()
    for _ in range(9):
        reader.now += 5.0
        assert reader.lag.stays_known(True, reader.now)
        assert reader.shown == (0, 0.0)
    assert not reader.lag.stays_known(False, reader.now), "nothing is requested"
    reader.check(undelivered=1)
    assert not reader.lag.stays_known(True, reader.now), "it is not delivered"
    reader.delivered(1, pending=7, stored_at=reader.now)
    assert reader.lag.stays_known(False, reader.now)
    reader.now += 5.0
    assert not reader.lag.stays_known(True, reader.now)


def test_the_undelivered_are_known_since_the_last_delivery_or_check(reader: Reader) -> None:
    assert reader.lag.undelivered_since(-inf) == 0, "nothing is known"
    checked_at = reader.now
    reader.check(undelivered=5)
    reader.now += 5.0
    assert [reader.lag.undelivered_since(at) for at in (-inf, checked_at, reader.now, inf)] == [5, 5, 0, 0]
    reader.delivered(1, pending=7, stored_at=reader.now)
    assert reader.lag.undelivered_since(reader.now) == 7
    reader.lag.forget()
    assert reader.lag.undelivered_since(-inf) == 0


# --- ages ---


def test_the_oldest_message_may_be_one_that_is_not_here(reader: Reader) -> None:
    reader.delivered(7, pending=0, stored_at=99.0)
    assert not reader.lag.wants_oldest(reader.cursor), "all that is unsettled seems to be here"
    reader.check(unacked=2)
    assert reader.lag.wants_oldest(reader.cursor)
    reader.check(unacked=2, oldest=StoredAt(3, nanoseconds(90.0)))
    assert reader.shown == (2, 10.0)


def test_a_message_that_is_settled_by_now_is_not_the_oldest(reader: Reader) -> None:
    reader.check(undelivered=1, oldest=StoredAt(7, nanoseconds(90.0)))
    assert reader.shown == (1, 10.0)
    reader.delivered(7, pending=1, stored_at=90.0)
    reader.delivered(8, pending=0, stored_at=99.0)
    assert reader.shown == (2, 10.0)
    reader.settled(7)
    assert reader.shown == (1, 1.0)


def test_without_a_lookup_what_waits_is_younger_than_the_last_delivery(reader: Reader) -> None:
    reader.delivered(1, pending=500, stored_at=60.0)
    reader.settled(1)
    reader.check(undelivered=500)
    assert reader.shown == (500, 40.0)


def test_without_a_lookup_what_waits_was_stored_since_nothing_waited(reader: Reader) -> None:
    reader.delivered(1, pending=0, stored_at=60.0)
    reader.settled(1)
    reader.check()
    reader.now += 5.0
    reader.check(undelivered=5)
    reader.now += 2.0
    assert reader.shown == (5, 7.0)


def test_without_a_lookup_it_is_behind_at_least_since_that_is_known(reader: Reader) -> None:
    reader.check(undelivered=5)
    reader.now += 5.0
    reader.check(undelivered=6)
    assert reader.shown == (6, 5.0)
    reader.check()
    reader.check(undelivered=1)
    assert reader.shown == (1, 0.0)


def test_ages_are_by_the_clock_of_the_server_and_never_negative(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.check()
    reader.delivered(1, pending=0, stored_at=130.0)
    assert reader.shown == (1, 0.0)
    old = Reader()
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds(200.0))
    old.delivered(1, pending=0, stored_at=130.0)
    assert old.shown == (1, 70.0), "a server that doesn't report its time has that of the router"


# --- of a router on the fake broker ---


class Truth:
    """The messages that a consumer has left, over the last five seconds."""

    def __init__(self, w: World) -> None:
        self._w = w
        self._seen: list[tuple[float, int, float]] = []

    def look(self) -> None:
        now = trio.current_time()
        consumer = self._w.broker._server.consumers["IN", "router"]
        state, oldest = consumer.state_at(now), consumer.oldest
        age = 0.0 if oldest is None else (state.time - oldest.time) / 1e9
        self._seen.append((now, state.undelivered + state.unacked, age))

    def compare(self) -> None:
        """Fail unless the number was right within the last five seconds, give or take 20, and the age five."""
        self.look()
        behind, now = self._w.route.behind, trio.current_time()
        assert behind is not None
        true = [
            at
            for at, messages, age in self._seen
            if at >= now - TRUE_WITHIN
            and abs(behind.messages - messages) <= 20
            and abs(behind.seconds - age) <= TRUE_WITHIN
        ]
        assert true, (behind, [one for one in self._seen if one[0] >= now - TRUE_WITHIN][::-5])


async def compare_for(w: World, truth: Truth, seconds: float) -> None:
    for _ in range(int(10 * seconds)):
        truth.look()
        await trio.sleep(0.1)
        truth.compare()


@pytest.mark.parametrize("seed", range(8))
async def test_it_is_true_within_five_seconds_whatever_happens(seed: int, autojump_clock: MockClock) -> None:
    random = Random(seed)

    async def handler(message: Message) -> Message:
        await trio.sleep(random.choice([0.0, 0.0, 0.1, 3.0]))
        if random.random() < 0.1:
            raise ValueError("now and then")
        return message

    route = handled(
        handler,
        to="out.x",
        retry={"initial": "1s", "max": "9s"},
        concurrency=5,
        max_in_flight=20,
        stream="IN",
        durable="router",
        filter="in.a",
    )
    async with world(handlers=[route], brokers=one_broker()) as w:
        await eventually(lambda: w.route.behind)
        truth = Truth(w)
        for _ in range(8):
            what = random.choice(["burst", "some", "nothing", "pause"])
            if what == "pause":
                w.broker.trouble.pause_consumer("IN", "router", 9.0)
            truth.look()
            fill(w.broker, {"burst": 200, "some": 10, "nothing": 0, "pause": 30}[what], subjects="ab")
            await compare_for(w, truth, random.choice([1, 4, 12]))


async def test_a_destination_that_is_away_and_a_filter(autojump_clock: MockClock) -> None:
    remote = stream("IN", to("out.x", "edge", jetstream=True), connection="main", filter="in.a")
    async with world([remote], brokers=two_brokers()) as w:
        await eventually(lambda: w.route.behind)
        await w.lose("edge")
        truth = Truth(w)
        truth.look()
        fill(w.broker, 40, subjects="ab")
        await compare_for(w, truth, 20)
        assert status(w.live, 0.0)["routes"]["route"]["behind"] == {
            "messages": 40,
            "seconds": pytest.approx(20, abs=0.5),
        }
        await w.find("edge")
        await eventually(lambda: w.route.behind is not None and not w.route.behind.messages)
        assert w.watch.metric("router_route_behind_count", route="route") == 0


async def test_with_many_routes_it_stays_known_and_true(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS_A_SECOND", 1 / 60)
    async with world([REMOTE], brokers=two_brokers()) as w:
        await eventually(lambda: w.route.behind)
        truth = Truth(w)
        await compare_for(w, truth, 30)
        await w.lose("edge")
        truth.look()
        fill(w.broker, 40)
        await compare_for(w, truth, 20)
        await w.find("edge")
        await compare_for(w, truth, 30)


async def test_without_a_link_or_a_durable_it_is_unknown(autojump_clock: MockClock) -> None:
    async with world([REMOTE], brokers=two_brokers()) as w:
        await eventually(lambda: w.route.behind)
        await w.lose("edge")
        await trio.sleep(60)  # the last request ends
        w.broker.delete_consumer("IN", "router")
        await eventually(lambda: w.route.behind is None, TRUE_WITHIN)
        await w.find("edge")
        await eventually(lambda: w.route.behind)
        await w.lose()
        assert w.route.behind is None
        assert status(w.live, 0.0)["routes"]["route"]["behind"] is None
        await w.find()
        await eventually(lambda: w.route.behind)


async def test_routes_from_a_subject_are_never_behind(autojump_clock: MockClock) -> None:
    async with world([{"name": "route", "from": {"subject": "a"}, "to": [to("b")]}]) as w:
        await trio.sleep(TRUE_WITHIN)
        assert w.route.behind is None
        assert "behind" not in status(w.live, 0.0)["routes"]["route"]


async def test_messages_that_another_process_has_settled_are_not_counted(autojump_clock: MockClock) -> None:
    async def fail(message: Message) -> Message:
        raise ValueError("here")

    failing = handled(
        fail, to="out.x", retry={"initial": "1s", "max": "1s"}, stream="IN", durable="router", filter="in.*"
    )
    brokers = one_broker()
    async with world(handlers=[failing], brokers=brokers) as w:
        fill(w.broker, 10)
        await eventually(lambda: w.route.behind is not None and w.route.behind.messages == 10)
        async with world([LOCAL], brokers=brokers) as other:
            await eventually(lambda: len(other.payloads("OUT")) == 10, 60)
            await trio.sleep(2 * TRUE_WITHIN)
            for one in (w, other):
                assert one.route.behind is not None
                assert (one.route.behind.messages, one.route.behind.seconds) == (0, 0.0)


async def test_a_reload_that_keeps_the_consumer_goes_on(autojump_clock: MockClock) -> None:
    limited = {**LOCAL, "limit": {"rate": "1/s", "burst": 1}}
    async with world([limited], brokers=one_broker()) as w:
        fill(w.broker, 100)
        await trio.sleep(10)
        await w.live.reload(w.configuration({**limited, "limit": {"rate": "2/s", "burst": 1}}))
        await eventually(lambda: w.route.behind)
        truth = Truth(w)
        await compare_for(w, truth, 20)
        await w.live.reload(w.configuration(stream("IN", "out.{{wildcard(1)}}", filter="in.*")))
        await eventually(lambda: w.route.behind is not None and not w.route.behind.messages)
