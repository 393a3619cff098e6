"""Limits across outages: messages that waited for a destination do not reach its server faster than the limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, stream, world
from tests.unit.routing.test_limits_of_routes import Times

pytestmark = pytest.mark.slow

RATE, BURST = 20, 20
SLOWER, FASTER = 16, 40
"""How many messages a second are offered: fewer than the limit allows, and more."""

KINDS: dict[str, dict[str, Any]] = {
    "passed on": {},
    "kept": {"retry": {}},
    "by key": {"key": "subject"},
    "by key through a handler": {"key": "payload", "concurrency": 20, "handler": f"{__name__}:soon"},
}


async def soon(message: Message) -> Message:
    await trio.sleep(0.001)
    return message


def limited(source: str, kind: str, per: str | None, **to: Any) -> dict[str, Any]:
    limit = {"rate": f"{RATE}/s", "burst": BURST} | ({} if per is None else {"per": per})
    destination = {"connection": "edge", "subject": "out.$1"} | to
    made = (
        core("in.*", destination, connection="main")
        if source == "core"
        else stream("IN", destination, filter="in.*", connection="main")
    )
    return made | {"limit": limit} | KINDS[kind]


def two_brokers() -> dict[str, FakeBroker]:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["main"].add_stream("IN", ["in.*"])
    return brokers


async def offer(w: World, rate: int, subjects: str, *, seconds: int) -> None:
    for number in range(rate * seconds):
        for subject in subjects:
            w.broker.publish(f"in.{subject}", b"%d" % number)
        await trio.sleep(1 / rate)


def assert_limit_holds(times: list[float], seconds: int) -> None:
    """Assert that the limit holds from the arrival of the first message on."""
    for after in range(1, seconds + 1):
        count = sum(at <= times[0] + after for at in times)
        assert count <= BURST + RATE * after + 1, f"{count} within {after} s"


def outages() -> Iterator[Any]:
    """Give each route an outage of one kind at one rate: any three of the five properties occur in all combinations.

    The exception is kind of route, of outage and of rate: half of these occur. All 64 combinations would prove no more.
    """
    for number, kind in enumerate(KINDS):
        for source in ("core", "stream"):
            for per in (None, "tokens[1]"):
                turned = (source == "stream") ^ (per is not None)
                silent, offered = bool(number & 1) ^ turned, FASTER if bool(number & 2) ^ turned else SLOWER
                words = source, kind, "for each value" if per else "for all", "half open" if silent else "away"
                yield pytest.param(source, kind, per, silent, offered, id=", ".join((*words, str(offered))))


@pytest.mark.parametrize(("source", "kind", "per", "silent", "offered"), list(outages()))
async def test_the_limit_holds_when_a_destination_is_back(
    source: str, kind: str, per: str | None, silent: bool, offered: int, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    subjects = "x" if per is None else "xy"
    route = limited(source, kind, per, jetstream=False)
    async with world([route], brokers=brokers, max_pending_operations=100_000) as w:
        await offer(w, offered, subjects, seconds=3)
        if silent:
            brokers["edge"].blackhole()
        else:
            await w.lose("edge")
        await offer(w, offered, subjects, seconds=12)
        outbox = w.live.connections["edge"].outbox
        assert outbox.pending + outbox.in_flight <= len(subjects) * (BURST + RATE + 2), (
            "no messages pile up in the outbox"
        )
        times = Times(brokers["edge"])
        brokers["edge"].up()
        await eventually(lambda: bool(times.all), within=30)
        await trio.sleep(6)
        for subject in subjects:
            assert_limit_holds(times.of[f"out.{subject}"], 5)
            assert len(times.of[f"out.{subject}"]) >= 4 * RATE, "the waiting messages are sent at the full rate"
        await eventually(lambda: w.route.in_hand == 0, within=120)
        assert w.route.settled["lost"] == 0
        assert w.route.settled["routed"] == offered * 15 * len(subjects)


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("per", [None, "tokens[1]"], ids=["for all", "for each value"])
async def test_messages_kept_during_an_outage_use_the_limit_even_if_no_others_arrived(
    source: str, per: str | None, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    async with world([limited(source, "kept", per, jetstream=False)], brokers=brokers) as w:
        await trio.sleep(1)
        brokers["edge"].blackhole()
        for number in range(BURST):
            w.broker.publish("in.x", b"%d" % number)
        await eventually(lambda: not w.live.connections["edge"].connected, within=60)
        await trio.sleep(30)
        times = Times(brokers["edge"])
        brokers["edge"].up()
        await eventually(lambda: len(times.all) == BURST, within=60)
        for number in range(4 * RATE):
            w.broker.publish("in.x", b"%d" % number)
        await trio.sleep(5)
        assert_limit_holds(times.all, 3)
        assert len(times.all) == BURST + 4 * RATE, "the others are sent at the full rate"
        # Everything is settled: the next messages find a full bucket.
        await trio.sleep(5)
        times.of.clear()
        for number in range(BURST):
            w.broker.publish("in.x", b"%d" % number)
        await trio.sleep(0.1)
        assert len(times.all) == BURST


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_limit_holds_when_a_stream_takes_messages_again(
    source: str, kind: str, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    brokers["edge"].add_stream("OUT", ["out.>"])
    route = limited(source, kind, None, jetstream=True)
    async with world([route], brokers=brokers, max_pending_operations=100_000) as w:
        await offer(w, SLOWER, "x", seconds=3)
        before = len(brokers["edge"].messages("OUT"))
        brokers["edge"].trouble.elect("OUT", 15)
        await offer(w, SLOWER, "x", seconds=12)
        assert len(brokers["edge"].messages("OUT")) <= before + 1
        await eventually(lambda: len(brokers["edge"].messages("OUT")) > before + 1, within=10)
        await trio.sleep(1)
        # One message was in flight at the election, and a few more do not use up the limit.
        assert len(brokers["edge"].messages("OUT")) - before <= BURST + RATE + 2
        await eventually(lambda: w.route.in_hand == 0, within=120)


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_limit_of_a_value_does_not_wait_when_a_stream_takes_messages_again(
    source: str, kind: str, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    brokers["edge"].trouble.travel(lambda: 0.02)
    route = limited(source, kind, "tokens[1]", jetstream=True)
    route["limit"]["burst"] = 1
    async with world([route], brokers=brokers) as w:
        await offer(w, 1, "xy", seconds=20)
        brokers["edge"].add_stream("OUT", ["out.>"])
        await trio.sleep(3)
        assert w.route.settled["routed"] == 40


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("trouble", ["refuses", "does not answer"])
async def test_the_limit_of_a_value_does_not_wait_for_publishes_to_another_stream(
    source: str, trouble: str, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    broker = brokers["edge"]
    broker.trouble.travel(lambda: 0.02)
    broker.add_stream("OUT", ["out.>"])
    broker.add_stream("OTHER", ["other.>"])
    other = core("other.*", {"connection": "edge", "subject": "other.$1", "jetstream": True}, name="other")
    other["from"]["connection"] = "main"
    route = limited(source, "passed on", "tokens[1]", jetstream=True)
    route["limit"] = {"rate": "1/s", "burst": 1, "per": "tokens[1]"}
    async with world([route, other], brokers=brokers) as w:
        if trouble == "refuses":
            broker.delete_stream("OTHER")
        else:
            broker.trouble.cut_off("OTHER")
        w.broker.publish("other.x", b"")
        for _ in range(10):
            for subject in "xyz":
                w.broker.publish(f"in.{subject}", b"")
            await trio.sleep(2)
        assert w.route.settled["routed"] == 30
        if trouble == "refuses":
            broker.add_stream("OTHER", ["other.>"])
        else:
            broker.trouble.cut_off("OTHER", False)


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("per", [None, "tokens[1]"], ids=["for all", "for each value"])
async def test_the_limit_does_not_slow_down_a_link_with_a_long_round_trip(
    source: str, per: str | None, autojump_clock: MockClock
) -> None:
    brokers = two_brokers()
    brokers["edge"].trouble.travel(lambda: 0.3)
    async with world([limited(source, "passed on", per, jetstream=False)], brokers=brokers) as w:
        await offer(w, RATE, "x", seconds=10)
        await trio.sleep(1)
        assert w.route.settled["routed"] >= 9.6 * RATE


async def takes_long(message: Message) -> Message:
    await trio.sleep(5)
    return message


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("per", [None, "tokens[1]"], ids=["for all", "for each value"])
async def test_long_calls_of_a_handler_do_not_count_as_unconfirmed_messages(
    source: str, per: str | None, autojump_clock: MockClock
) -> None:
    route = limited(source, "by key", per, jetstream=False) | {"key": "payload", "concurrency": 500}
    route |= {"handler": f"{__name__}:takes_long"}
    route["limit"] |= {"rate": "10/s", "burst": 1}
    async with world([route], brokers=two_brokers()) as w:
        await offer(w, 10, "x", seconds=20)
        await trio.sleep(6)
        assert w.route.settled["routed"] >= 190


@pytest.mark.parametrize("source", ["core", "stream"])
@pytest.mark.parametrize("per", [None, "tokens[1]"], ids=["for all", "for each value"])
async def test_a_fallback_is_used_while_the_first_destination_is_down(
    source: str, per: str | None, autojump_clock: MockClock
) -> None:
    brokers = two_brokers() | {"other": FakeBroker()}
    route = limited(source, "passed on", per, jetstream=False) | {"strategy": "fallback"}
    route["to"].append({"connection": "other", "subject": "out.$1", "jetstream": False})
    async with world([route], brokers=brokers) as w:
        await w.lose("edge")
        times = Times(brokers["other"])
        await offer(w, SLOWER, "x", seconds=5)
        assert len(times.all) >= 4.75 * SLOWER
        await w.find("edge")
