"""A stalled route, which gets no new messages because too many are unacked: `/readyz` reports it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.link import LOOKUP_WITHIN, ConsumerState
from router_trio.message import Message
from router_trio.routing.policy import retry
from router_trio.routing.stream.consumer.standstill import Look, Unmoved, standstill
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.pulling.checks import CHECK_EVERY, DENIED_CHECK_EVERY
from router_trio.states import PAUSED, RUNNING
from router_trio.telemetry.http.status import readiness
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import LOCAL, World, fill, handled, numbers, one_broker, world

SOURCE: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*"}
FULL = ConsumerState(None, unacked=3, max_ack_pending=3, delivered=9, undelivered=5)
WAITS = (
    "unacked messages and may have 3 (max_ack_pending), so nothing new is delivered and 2 messages wait in the stream; "
)


def reasons(w: World) -> list[str]:
    return [one["reason"] for one in readiness(w.live, trio.current_time())[1]["reasons"]]


async def test_a_stall_is_reported_until_something_new_is_delivered(autojump_clock: MockClock) -> None:
    mended = False

    def handler(message: Message) -> Message:
        if not mended and int(message.payload) < 2:
            raise ValueError("every time")
        return message

    made = handled(handler, to="out.x", retry={"initial": "3s", "max": "3s"}, **SOURCE)
    async with world(handlers=[made], brokers=one_broker()) as w:
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=2)
        fill(w.broker, 5)
        await eventually(lambda: w.route.failed["handler_error"] == 2)
        assert reasons(w) == []
        await trio.sleep(12.0)
        (reason,) = reasons(w)
        assert reason.startswith(
            "the consumer has 2 unacked messages and may have 2 (max_ack_pending), so nothing new is"
        )
        assert "3 messages wait in the stream; message 1, the first unacked one, has failed" in reason
        assert w.route.state == PAUSED
        mended = True
        await eventually(lambda: w.route.settled["routed"] == 5, 10.0)
        await eventually(lambda: w.route.state == RUNNING, 0.5)
        assert reasons(w) == []


async def test_lost_acks_stall_a_route_until_their_ack_wait_is_over(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=3)
        w.broker.trouble.lose("ack", 3)
        fill(w.broker, 5)
        await eventually(lambda: w.payloads("OUT") == numbers(3))
        await trio.sleep(12.0)
        (reason,) = reasons(w)
        assert reason.startswith(
            f"the consumer has 3 {WAITS}3 of the unacked messages are settled here and their acks were refused or lost"
        )
        assert w.route.state == PAUSED
        await eventually(lambda: w.payloads("OUT") == numbers(5), 30.0)
        await eventually(lambda: w.route.state == RUNNING, 0.5)
        assert reasons(w) == []


async def test_messages_held_behind_a_failed_one_do_not_count_as_in_progress(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 60.0)
    async with world([LOCAL | {"retry": {"initial": "1m", "max": "1m"}}], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 1)
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.x")
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=3)
        fill(w.broker, 4, first=1)
        await trio.sleep(12.0)
        assert w.route.in_hand == 2
        assert [
            found
            for found in reasons(w)
            if f"the consumer has 3 {WAITS}message 1, the first unacked one, failed" in found
        ]
        await eventually(lambda: w.payloads("OUT") == numbers(5), 60.0)


async def test_a_stall_is_reported_soon_after_checks_were_refused_for_a_short_time(autojump_clock: MockClock) -> None:
    checks, refused_for = "$JS.API.CONSUMER.INFO.IN.router", 12.0

    def handler(message: Message) -> Message:
        raise ValueError("every time")

    made = handled(handler, to="out.x", retry={"initial": "3s", "max": "3s"}, **SOURCE)
    async with world(handlers=[made], brokers=one_broker()) as w:
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=2)
        w.broker.deny_publish(checks)
        fill(w.broker, 5)
        await trio.sleep(refused_for)
        w.broker.allow_publish(checks)
        await eventually(lambda: any("max_ack_pending" in one for one in reasons(w)), refused_for + 3 * CHECK_EVERY)
        assert w.route.state == PAUSED


async def test_a_stall_is_reported_while_checks_stay_refused(autojump_clock: MockClock) -> None:
    mended = False

    def handler(message: Message) -> Message:
        if not mended and int(message.payload) < 2:
            raise ValueError("every time")
        return message

    made = handled(handler, to="out.x", retry={"initial": "3s", "max": "3s"}, **SOURCE)
    async with world(handlers=[made], brokers=one_broker()) as w:
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=2)
        w.broker.deny_publish("$JS.API.CONSUMER.INFO.IN.router")
        await trio.sleep(3 * DENIED_CHECK_EVERY)
        assert reasons(w) == []
        fill(w.broker, 5)
        await eventually(lambda: w.route.state == PAUSED, 3 * CHECK_EVERY)
        (reason,) = reasons(w)
        assert "although messages are requested and the consumer had 3 left" in reason
        assert "the consumer can't be checked: this user may not publish to '$JS.API.CONSUMER.INFO.IN.router'" in reason
        await trio.sleep(30.0)
        assert reasons(w) == [reason]
        mended = True
        await eventually(lambda: w.route.settled["routed"] == 5, 10.0)
        assert w.route.state == RUNNING
        await trio.sleep(3 * DENIED_CHECK_EVERY)
        assert reasons(w) == []


async def test_a_check_that_stays_refused_is_made_once_a_minute(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    check = FakePullConsumer.check

    async def counted(consumer: FakePullConsumer, *, oldest: bool = False) -> ConsumerState:
        made.append(trio.current_time())
        return await check(consumer, oldest=oldest)

    monkeypatch.setattr(FakePullConsumer, "check", counted)
    async with world([LOCAL], brokers=one_broker()) as w:
        w.broker.deny_publish("$JS.API.CONSUMER.INFO.IN.router")
        await trio.sleep(10 * DENIED_CHECK_EVERY)
    pauses = [later - earlier for earlier, later in pairwise(made)]
    assert max(pauses) <= DENIED_CHECK_EVERY + LOOKUP_WITHIN
    assert len([pause for pause in pauses if pause < 0.9 * DENIED_CHECK_EVERY]) <= 5, pauses


@pytest.mark.parametrize("denied", [False, True], ids=["checked", "checks refused"])
async def test_a_slow_handler_is_not_a_stall(denied: bool, autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(20.0)
        return message

    async with world(handlers=[handled(slow, to="out.x", **SOURCE)], brokers=one_broker()) as w:
        w.broker.trouble.edit_consumer("IN", "router", max_ack_pending=1)
        if denied:
            w.broker.deny_publish("$JS.API.CONSUMER.INFO.IN.router")
        fill(w.broker, 3)
        for _ in range(50):
            await trio.sleep(1.0)
            assert w.route.state == RUNNING


def cursor_with(*sequences: int) -> StreamCursor:
    cursor = StreamCursor("s")
    for number, sequence in enumerate(sequences, 1):
        cursor.mark_received(sequence, number, b"t", 0.0, 30.0)
    return cursor


@pytest.mark.parametrize(
    ("before", "now", "in_hand", "held"),
    [
        pytest.param(replace(FULL, delivered=8), FULL, 0, 0, id="something was delivered"),
        pytest.param(FULL, replace(FULL, unacked=2), 0, 0, id="there is room"),
        pytest.param(FULL, replace(FULL, max_ack_pending=-1), 0, 0, id="there is no limit"),
        pytest.param(FULL, FULL, 2, 0, id="most of the unacked messages are in progress"),
        pytest.param(FULL, FULL, 3, 0, id="all of the unacked messages are in progress"),
        pytest.param(FULL, FULL, 3, 2, id="others wait for a message that another destination has yet to answer"),
    ],
)
def test_no_stall_is_found(before: ConsumerState, now: ConsumerState, in_hand: int, held: int) -> None:
    assert standstill(Look(FULL, 0), Look(FULL, 0), cursor_with(7, 8, 9)) is not None
    assert standstill(Look(before, 0), Look(now, in_hand, held), cursor_with(7, 8, 9)) is None


def test_one_lookup_is_not_enough_for_a_stall() -> None:
    assert standstill(None, Look(FULL, 0), cursor_with(7, 8, 9)) is None


def test_a_durable_shared_with_others_is_not_reported_as_stalled() -> None:
    assert standstill(Look(FULL, 0), Look(FULL, 0), StreamCursor("s"), alone=False) is None


@pytest.mark.parametrize("before", [Look(FULL, 2), Look(replace(FULL, unacked=2), 0)], ids=["in progress", "room"])
def test_an_ack_in_transit_at_one_lookup_is_no_stall(before: Look) -> None:
    assert standstill(Look(FULL, 1), Look(FULL, 1), StreamCursor("s")) is not None
    assert standstill(before, Look(FULL, 1), StreamCursor("s")) is None


@pytest.mark.parametrize(
    ("attempts", "described"), [(0, "is to be redelivered"), (1, "failed"), (5, "has failed 5 times")], ids=str
)
@pytest.mark.parametrize("look", [Look(FULL, 1), Look(FULL, 2, held=1)], ids=["in hand", "held"])
def test_the_first_message_is_named(attempts: int, described: str, look: Look) -> None:
    cursor = cursor_with(7, 8, 9)
    for _ in range(attempts):
        cursor.failures.known(7).count("handler_error")
    text = str(standstill(Look(FULL, 0), look, cursor, last_failure="; why"))
    assert text.endswith(f"message 7, the first unacked one, {described}; why")


@pytest.mark.parametrize(
    ("highest", "undelivered", "active", "requested_since"),
    [
        pytest.param(9, 3, 0, 0.0, id="something was delivered"),
        pytest.param(8, 0, 0, 0.0, id="nothing is left"),
        pytest.param(8, 3, 1, 0.0, id="half of the unsettled messages are in progress"),
        pytest.param(8, 3, 0, inf, id="nothing is requested"),
        pytest.param(8, 3, 0, 12.0, id="messages were requested later"),
    ],
)
def test_a_consumer_counts_as_unmoved_only_since_nothing_explains_it(
    highest: int, undelivered: int, active: int, requested_since: float
) -> None:
    unmoved = Unmoved()
    unmoved.look(cursor_with(7, 8), 3, 0, 0.0, 10.0)
    unmoved.look(cursor_with(7, 8), 3, 0, 0.0, 15.0)
    assert unmoved.since == 10.0
    unmoved.look(cursor_with(7, highest), undelivered, active, requested_since, 20.0)
    assert unmoved.since > 15.0
