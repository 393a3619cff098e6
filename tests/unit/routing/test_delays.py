"""Destinations with `delay`: their copies are stored as schedules, and published by the stream."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, stream, to, world
from tests.unit.readiness import until_ready, until_unready, why

LATE = 1.0
"""Seconds after its time within which the fake publishes a schedule."""


def brokers(**config: Any) -> dict[str, FakeBroker]:
    """Return a broker with the streams IN and OUT; OUT keeps schedules, and has this configuration."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    settings = {"allow_message_schedules": True} | config
    broker._server.ensure_stream(StreamConfig("OUT", ("out.>", "later.*"), **settings), 0.0)
    return {"main": broker}


def delayed(delay: str, subject: str = "out.{{wildcard(1)}}", **more: Any) -> dict[str, Any]:
    """Return a destination with this delay."""
    there = {"connection": "main", "subject": subject, "jetstream": True}
    return {**there, "delay": delay, "schedule_prefix": "later", **more}


def scheduled(w: World) -> list[float]:
    """Return when the schedules of OUT are due, on Trio's clock."""
    return [one.due_ns / 1e9 - EPOCH for one in w.broker._server.streams["OUT"].schedules.values()]


def published(w: World) -> list[tuple[str, bytes]]:
    """Return subject and payload of each message of OUT that is not a schedule."""
    return [(one.subject, one.payload) for one in w.broker.messages("OUT") if one.subject.startswith("out.")]


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_a_copy_is_published_after_its_delay_and_not_before(kind: str, autojump_clock: MockClock) -> None:
    source = core("in.*", delayed("5m")) if kind == "core" else stream("IN", delayed("5m"), filter="in.*")
    async with world([source], brokers=brokers()) as w:
        began = trio.current_time()
        w.broker.publish("in.a", b"body", {"X-Kept": "1"})
        await eventually(lambda: w.route.settled["routed"] == 1)
        assert not published(w)
        (due,) = scheduled(w)
        assert began + 300 <= due <= trio.current_time() + 300.001
        await trio.sleep(due - trio.current_time() - 0.001)
        assert not published(w)
        await trio.sleep(LATE)
        assert published(w) == [("out.a", b"body")]
        assert w.broker.messages("OUT")[-1].headers["X-Kept"] == "1"
        assert not scheduled(w)


@pytest.mark.parametrize("kind", ["core", "stream"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (delayed("2s"), delayed("6s")),
        (delayed("2s"), {"connection": "main", "subject": "out.{{wildcard(1)}}", "jetstream": True}),
        (delayed("2s", payload="'1'"), delayed("2s", payload="'2'")),
        (delayed("2s"), delayed("2s", mirror=1.0)),
        (delayed("2s", "out.{{random(9)}}"), delayed("2s", "out.{{random(9)}}")),
    ],
)
async def test_two_destinations_of_one_subject_have_a_copy_each(
    first: dict[str, Any], second: dict[str, Any], kind: str, autojump_clock: MockClock
) -> None:
    route = core("in.*", first, second) if kind == "core" else stream("IN", first, second, filter="in.*")
    async with world([route], brokers=brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1)
        await trio.sleep(10)
        payloads = [b"1", b"2"] if "payload" in second else [b"body"] * 2
        assert sorted(payload for _, payload in published(w)) == payloads


async def test_the_delay_is_computed_for_each_message(autojump_clock: MockClock) -> None:
    to = delayed("has(body.at) ? timestamp(body.at) : time + duration(body.wait)", ttl="1h")
    async with world([stream("IN", to, filter="in.*")], brokers=brokers()) as w:
        at = datetime.fromtimestamp(EPOCH + 400, UTC).isoformat()
        for body in ({"wait": "90s"}, {"at": at}, {"wait": "-5m"}):
            w.broker.publish("in.a", json.dumps(body).encode())
        await eventually(lambda: w.route.settled["routed"] == 3)
        await trio.sleep(LATE)
        assert [json.loads(payload) for _, payload in published(w)] == [{"wait": "-5m"}], "the past is now"
        await trio.sleep(90)
        assert [round(due) for due in scheduled(w)] == [400]
        await trio.sleep(400)
        messages = [one for one in w.broker.messages("OUT") if one.subject == "out.a"]
        assert [one.headers["Nats-TTL"] for one in messages] == ["3600s"] * 3, (
            "of the copies, and not of their schedules"
        )


@pytest.mark.parametrize(
    "body", [{"at": "9999-12-31T23:59:59.999Z"}, {"at": "2262-04-11T23:47:17Z"}, {"wait": "3000000h"}]
)
async def test_a_time_that_no_server_can_count_to_is_the_last_one_that_it_can(
    body: dict[str, str], autojump_clock: MockClock
) -> None:
    to = delayed("has(body.at) ? timestamp(body.at) : time + duration(body.wait)")
    async with world([stream("IN", to, filter="in.*")], brokers=brokers()) as w:
        w.broker.publish("in.a", json.dumps(body).encode())
        await eventually(lambda: w.route.settled["routed"] == 1)
        (schedule,) = w.broker._server.streams["OUT"].schedules.values()
        assert 0 <= 2**63 - 1 - schedule.due_ns < 1_000_000_000


async def test_a_delay_that_can_not_be_computed_fails_its_message(autojump_clock: MockClock) -> None:
    route = stream("IN", delayed("duration(body.wait)"), filter="in.*", retry={"attempts": 1})
    async with world([route], brokers=brokers()) as w:
        w.broker.publish("in.a", b'{"wait": "soon"}')
        await eventually(lambda: w.route.settled["given_up"] == 1)
        assert w.route.failed == {"expression": 1}


async def test_a_message_that_is_scheduled_again_after_the_duplicate_window_is_published_once(
    autojump_clock: MockClock,
) -> None:
    there = brokers(duplicate_window=1.0)
    route = stream("IN", delayed("1m"), filter="in.*", ack_wait="2s")
    there["main"].trouble.lose("ack", 10)
    async with world([route], brokers=there) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1)
        (first,) = scheduled(w)
    there["main"].trouble.lose("ack", 0)
    await trio.sleep(5.0)
    async with world([route], brokers=there) as w:
        await eventually(lambda: w.route.settled["routed"] == 1)
        (second,) = scheduled(w)
        assert second > first
        await trio.sleep(60 + LATE)
        assert published(w) == [("out.a", b"body")]


async def test_headers_of_a_handler_steer_the_copy_and_not_its_schedule(autojump_clock: MockClock) -> None:
    def expires(message: Message) -> Message:
        headers = {
            "Nats-TTL": "2s",
            "Nats-Rollup": "sub",
            "Nats-Schedule": "@every 1s",
            "nats-schedule-target": "out.x",
        }
        return message.replace(headers={**headers, "Nats-Schedule-Source": "out.y"})

    w: World
    route = handled(expires, subject="in.*", to=[delayed("5m")])
    async with world(handlers=[route], brokers=brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1)
        (schedule,) = w.broker.messages("OUT")
        assert schedule.headers["Nats-Schedule"].startswith("@at ")
        assert schedule.headers["Nats-Schedule-Target"] == "out.a"
        assert schedule.headers["Nats-Schedule-TTL"] == "2s"
        assert schedule.headers["Nats-Schedule-Rollup"] == "sub"
        assert not {"Nats-TTL", "Nats-Rollup", "Nats-Schedule-Source", "nats-schedule-target"} & set(schedule.headers)
        await trio.sleep(300 + LATE)
        assert published(w) == [("out.a", b"body")]


async def test_a_sender_can_not_choose_the_subject_of_a_schedule(autojump_clock: MockClock) -> None:
    route = core("in.*.*", delayed("5m", "{{wildcard(1)}}.{{wildcard(2)}}"), retry={"attempts": 1})
    async with world([route], brokers=brokers()) as w:
        w.broker.publish("in.later.x")
        w.broker.publish("in.out.x")
        await eventually(lambda: w.route.received == 2 and not w.route.in_hand)
        assert w.route.failed == {"reserved_subject": 1}


async def unready_for(w: World) -> str:
    """Return why the route is not ready, once its destination is refused."""
    await until_unready(w, "schedules_refused")
    return why(w)


UNFIT: dict[str, dict[str, Any]] = {
    "does not publish messages later; set allow_msg_schedules": {"allow_message_schedules": False},
    "has the discard policy new": {"discard": "new"},
    "has the retention interest": {"retention": "interest"},
    "has limits (max_age, max_bytes, max_msgs)": {"max_age": 60.0, "max_bytes": 1, "max_messages": 1},
}


@pytest.mark.parametrize("cause", UNFIT)
async def test_nothing_is_sent_to_a_stream_that_would_lose_schedules(cause: str, autojump_clock: MockClock) -> None:
    """It would ack each of them. As soon as the stream is edited, the messages are sent."""
    async with world([stream("IN", delayed("5m"), filter="in.*")], brokers=brokers(**UNFIT[cause])) as w:
        assert cause in await unready_for(w)
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.failed["schedules_refused"] > 1)
        assert not w.broker.published
        server = w.broker._server
        server.delete_stream("OUT")
        server.ensure_stream(StreamConfig("OUT", ("out.>", "later.*"), allow_message_schedules=True), 0.0)
        await until_ready(w)
        await eventually(lambda: w.route.settled["routed"] == 1, 120)
        assert len(scheduled(w)) == 1


async def test_a_stream_without_the_target_or_that_can_not_be_looked_up_is_refused(autojump_clock: MockClock) -> None:
    config = StreamConfig("LATER", ("later.*",), allow_message_schedules=True)
    other = FakeBroker()
    other.add_stream("IN", ["in.*"])
    other._server.ensure_stream(config, 0.0)
    async with world([stream("IN", delayed("5m"), filter="in.*")], brokers={"main": other}) as w:
        assert "does not take 'out.*' itself" in await unready_for(w)
    hidden = brokers()
    hidden["main"].deny_publish("$JS.API.STREAM.INFO.OUT")
    async with world([stream("IN", delayed("5m"), filter="in.*")], brokers=hidden) as w:
        assert "allow this user to" in await unready_for(w)


async def test_a_reloaded_route_delays_at_once(autojump_clock: MockClock) -> None:
    route = core("in.*", delayed("5m"))
    async with world([route], brokers=brokers()) as w:
        await until_ready(w)
        await w.live.reload(w.configuration(route | {"hop_limit": 5}))
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1)
        assert w.route_ledger() == (1, 0, {"routed": 1})


def arrives(kind: str, to: dict[str, Any]) -> dict[str, Any]:
    """Return keys of `world` for a route of this kind, which gives up what fails once."""
    if kind == "handler":
        return {"handlers": [handled(lambda message: message, subject="in.*", connection="main", to=[to])]}
    if kind == "stream":
        return {"routes": [stream("IN", to, connection="main", filter="in.*") | {"retry": {"attempts": 1}}]}
    more: dict[str, Any] = {
        "core": {},
        "limit": {"limit": {"rate": "100/s"}},
        "retry": {"retry": {"not": ["schedules_refused"]}},
    }
    return {"routes": [core("in.*", to, connection="main") | more[kind]]}


KINDS = ("core", "handler", "limit", "retry", "stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_that_arrive_before_the_first_lookup_wait_for_it(kind: str, autojump_clock: MockClock) -> None:
    """The stream has no leader at first, which alone tells whether it keeps schedules."""
    there = brokers()
    there["main"].trouble.elect("OUT", 20.0)
    async with world(**arrives(kind, delayed("5m")), brokers=there) as w:
        for number in range(3):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.received == 3)
        await trio.sleep(5.0)
        assert w.route_ledger() == (3, 3, {})
        await eventually(lambda: w.route.settled["routed"] == 3, 60)
        assert w.route.failed == {}
        assert len(scheduled(w)) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_that_arrive_before_the_first_connection_wait_for_it(
    kind: str, autojump_clock: MockClock
) -> None:
    there = brokers() | {"late": brokers()["main"]}
    there["late"].down()
    to = delayed("5m", connection="late")
    async with world(**arrives(kind, to), brokers=there) as w:
        w.broker.publish("in.a", b"1")
        await trio.sleep(60.0)
        assert not w.route.failed
        there["late"].up()
        await eventually(lambda: w.route.settled["routed"] == 1, 60)
        assert len(there["late"]._server.streams["OUT"].schedules) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_fail_once_a_lookup_shows_that_schedules_would_be_lost(
    kind: str, autojump_clock: MockClock
) -> None:
    there = brokers(allow_message_schedules=False)
    there["main"].trouble.elect("OUT", 20.0)
    async with world(**arrives(kind, delayed("5m")), brokers=there) as w:
        w.broker.publish("in.a", b"1")
        await eventually(lambda: w.route.received == 1)
        await trio.sleep(5.0)
        assert not w.route.failed
        await eventually(lambda: w.route.failed == {"schedules_refused": 1}, 60)
        await eventually(lambda: w.route.in_hand == 0)


@pytest.mark.parametrize("denied", ["STREAM.NAMES", "STREAM.INFO.OUT"])
async def test_messages_do_not_wait_for_a_lookup_that_is_not_permitted(denied: str, autojump_clock: MockClock) -> None:
    hidden = brokers()
    hidden["main"].deny_publish(f"$JS.API.{denied}")
    async with world([core("in.*", delayed("5m"))], brokers=hidden) as w:
        w.broker.publish("in.a", b"1")
        await eventually(lambda: w.route.failed == {"schedules_refused": 1}, 30)


async def test_a_fallback_without_a_lookup_is_passed_over(autojump_clock: MockClock) -> None:
    there = brokers() | {"late": brokers()["main"]}
    there["late"].down()
    ends = [delayed("5m", connection="late"), to("out.b", connection="main", jetstream=True)]
    route = core("in.*", *ends, connection="main") | {"strategy": "fallback"}
    async with world([route], brokers=there) as w:
        w.broker.publish("in.a", b"1")
        await eventually(lambda: published(w) == [("out.b", b"1")], 30)
