"""Readiness agrees with a probe: in each state that can be made, on the router's own clock and with its own times.

A route is broken; within ten seconds the answer is 503, with a reason that names what is wrong, and a probe that is
sent then does not arrive. It is mended; the answer is 200 again and a probe arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.states import HANDLER_QUIET
from router_trio.telemetry.http.status import readiness
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, one_broker, stream, to, two_brokers, world

WITHIN = 10.0

CORE = core("in.>", "heard.>", name="core")
TO_STREAM = core("in.>", to("out.>", jetstream=True), name="stored")
STREAM = stream("IN", "out.{{wildcard(1)}}", filter="in.*")


@dataclass(frozen=True)
class State:
    """How it is made and mended, on which routes, and a text that its reason has.

    `probe_helps`: only a message that gets through shows that it is mended.
    """

    routes: list[dict[str, Any]]
    break_it: Callable[[World], None]
    mend: Callable[[World], None]
    reason: str
    broken_at_start: bool = False
    probe_breaks: bool = False
    probe_helps: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def add_out(w: World) -> None:
    w.broker.add_stream("OUT", ["out.>"])


def delete_out(w: World) -> None:
    w.broker.delete_stream("OUT")


def replace_out(w: World) -> None:
    delete_out(w)
    add_out(w)


def fill_out(w: World) -> None:
    for _ in range(2):
        w.broker.publish("out.filler")
    w.broker.trouble.limit("OUT", len(w.broker.messages("OUT")))


def limit(messages: int | None) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.limit("OUT", messages)


def subjects(*subjects: str) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.edit_subjects("OUT", *subjects)


def deny(pattern: str) -> Callable[[World], None]:
    return lambda w: w.broker.deny_publish(pattern)


def allow(pattern: str) -> Callable[[World], None]:
    return lambda w: w.broker.allow_publish(pattern)


def pause(seconds: float) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.pause_consumer("IN", "router", seconds)


def headers_only(on: bool) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.edit_consumer("IN", "router", headers_only=on)


STATES = {
    "stream missing, core source": State([TO_STREAM], delete_out, add_out, "no stream takes 'out.>'", True),
    "stream missing, stream source": State([STREAM], delete_out, add_out, "no stream takes 'out.*'", True),
    "stream deleted, core source": State([TO_STREAM], delete_out, add_out, "no stream takes 'out.>'"),
    "stream deleted, stream source": State([STREAM], delete_out, add_out, "no stream takes 'out.*'"),
    "subject taken from the stream": State(
        [TO_STREAM], subjects("other.>"), subjects("out.>"), "no stream takes 'out.>'"
    ),
    "some subjects taken from the stream": State(
        [TO_STREAM], subjects("out.other"), subjects("out.>"), "no_responders", probe_breaks=True
    ),
    "stream full": State([TO_STREAM], fill_out, limit(None), "'OUT' is full"),
    "stream full, stream source": State([STREAM], fill_out, limit(100), "'OUT' is full"),
    "stream sealed": State([TO_STREAM], lambda w: w.broker.trouble.seal("OUT"), replace_out, "'OUT' is sealed"),
    "no permission, core": State(
        [CORE], deny("heard.>"), allow("heard.>"), "permission_denied", probe_breaks=True, probe_helps=True
    ),
    "no permission, core source": State(
        [TO_STREAM], deny("out.>"), allow("out.>"), "permission_denied", probe_breaks=True, probe_helps=True
    ),
    "no permission, stream source": State(
        [STREAM], deny("out.>"), allow("out.>"), "permission_denied", probe_breaks=True, probe_helps=True
    ),
    "consumer paused": State([STREAM], pause(3600), pause(0), "paused"),
    "consumer delivers only headers": State([STREAM], headers_only(True), headers_only(False), "headers_only"),
    "connection away": State([CORE], lambda w: w.broker.down(), lambda w: w.broker.up(), "main"),
    "connection silent": State(
        [CORE], lambda w: w.broker.blackhole(), lambda w: w.broker.up(), "", options={"liveness_interval": "4s"}
    ),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
async def test_readiness_agrees_with_a_probe(state: State, autojump_clock: MockClock) -> None:
    brokers = one_broker()
    if state.broken_at_start:
        brokers["main"].delete_stream("OUT")
    async with world(state.routes, brokers=brokers, **state.options) as w:
        if not state.broken_at_start:
            assert readiness(w.live, trio.current_time()) == (200, {"status": "ok", "reasons": []})
            await probe_arrives(w)
            state.break_it(w)
        if state.probe_breaks:
            await probe(w)
        await until_unready(w, state.reason)
        assert not await probe(w)
        state.mend(w)
        if state.probe_helps:
            await trio.sleep(60)  # what was refused from a stream comes again by itself
            assert await probe(w)
        await until_ready(w)
        await probe_arrives(w)


_numbers = count(1)


async def probe(w: World) -> bool:
    """Send a message to the routes' source. Whether it gets through, in good time."""
    payload = b"probe %d" % next(_numbers)
    with suppress(AssertionError):
        w.broker.publish("in.x", payload)
        await eventually(lambda: payload in arrived(w), 5.0)
        return True
    return False


def arrived(w: World) -> list[bytes]:
    """The payloads that got to the other side."""
    stored = []
    with suppress(KeyError):  # the stream may be what is away
        stored = w.payloads("OUT")
    return stored + [message.payload for message in w.broker.published if message.subject.startswith("heard.")]


async def probe_arrives(w: World) -> None:
    assert await probe(w)


async def until_unready(w: World, reason: str) -> None:
    await eventually(lambda: reason in why(w) != "", WITHIN, lambda: readiness(w.live, trio.current_time()))
    assert readiness(w.live, trio.current_time())[0] == 503


async def until_ready(w: World) -> None:
    await eventually(lambda: not why(w), WITHIN, lambda: readiness(w.live, trio.current_time()))
    assert readiness(w.live, trio.current_time())[0] == 200


def why(w: World) -> str:
    return "; ".join(str(reason) for reason in readiness(w.live, trio.current_time())[1]["reasons"])


@pytest.mark.parametrize("source", ["core", "stream"])
async def test_a_handler_that_does_not_return_is_not_ready_until_it_moves(
    source: str, autojump_clock: MockClock
) -> None:
    go_on = trio.Event()

    async def handler(message: Message) -> Message:
        if message.payload == b"hang":
            await go_on.wait()
        return message

    route: dict[str, Any] = {"to": "heard.>", "subject": "in.>"}
    if source == "stream":
        route = {"to": {"subject": "out.{{wildcard(1)}}", "jetstream": True}, "stream": "IN", "durable": "router"}
        route["filter"] = "in.*"
    async with world(handlers=[handled(handler, **route)], brokers=one_broker()) as w:
        await probe_arrives(w)
        await trio.sleep(3600)
        assert not why(w), "an idle route is ready"
        w.broker.publish("in.x", b"hang")
        await trio.sleep(HANDLER_QUIET - 0.5)
        assert not why(w), "it may take its time"
        await until_unready(w, "its handler has not returned for")
        assert not await probe(w)
        go_on.set()
        await until_ready(w)
        await probe_arrives(w)


async def test_a_slow_handler_that_moves_is_ready(autojump_clock: MockClock) -> None:
    async def handler(message: Message) -> Message:
        await trio.sleep(HANDLER_QUIET - 1)
        return message

    async with world(handlers=[handled(handler, subject="in.>", to="heard.>")], shutdown_timeout=60) as w:
        for number in range(4):
            w.broker.publish("in.x", b"%d" % number)
        for _ in range(20):
            await trio.sleep(1)
            assert not why(w)


async def test_a_stream_of_several_that_takes_messages_is_enough_until_a_publish_says_otherwise(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    broker = brokers["main"]
    broker.delete_stream("OUT")
    broker.add_stream("A", ["out.a"])
    broker.add_stream("OLD", ["out.old.>"])
    broker.trouble.seal("OLD")
    async with world([TO_STREAM], brokers=brokers) as w:
        await trio.sleep(WITHIN)
        assert not why(w), "one that is sealed may be no business of this route"
        broker.publish("in.old.x")
        await until_unready(w, "jetstream_10109")


async def test_a_limit_that_is_gone_before_anybody_looked_is_over_all_the_same(autojump_clock: MockClock) -> None:
    """The first look at the stream after the refusal sees it with room: there never is more than that."""
    async with world([TO_STREAM], brokers=one_broker()) as w:
        fill_out(w)
        w.broker.publish("in.x")
        await until_unready(w, "limit")
        limit(None)(w)  # a destination that takes one message and refuses the next is not looked at each time
        await probe_arrives(w)
        fill_out(w)
        w.broker.publish("in.x")
        await until_unready(w, "limit")
        limit(None)(w)
        await until_ready(w)
        await probe_arrives(w)


async def test_a_destination_that_confirms_nothing_is_not_ready(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        await probe_arrives(w)
        w.broker.trouble.lose("puback", 1_000_000)
        w.broker.publish("in.x")
        await until_unready(w, "of route route does not confirm what it receives")
        w.broker.trouble.lose("puback", 0)
        await until_ready(w)
        await probe_arrives(w)


async def test_a_destination_that_refused_and_then_confirms_nothing_is_not_ready(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        w.broker.trouble.elect("OUT", 1.0)
        w.broker.publish("in.x")
        await trio.sleep(0.5)
        w.broker.trouble.lose("puback", 1_000_000)
        await trio.sleep(WITHIN)
        await until_unready(w, "does not confirm what it receives")
        w.broker.trouble.lose("puback", 0)
        await until_ready(w)


async def test_only_refusals_of_the_destination_count(autojump_clock: MockClock) -> None:
    async with world([TO_STREAM], brokers=one_broker()) as w:
        destinations = w.live.connections["main"].destinations
        destinations.publish_refused(b"out.x", "too_large", "of the message")
        destinations.publish_refused(b"out.x", "wrong_expectation", "of the message")
        destinations.publish_refused(b"elsewhere", "permission_denied", "of nobody here")
        assert not why(w)
        assert not w.watch.of("NATS_DESTINATION_NOT_STORED")


async def test_a_destination_is_told_of_once_and_again_when_it_is_mended(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].delete_stream("OUT")
    async with world([TO_STREAM], brokers=brokers) as w:
        event = await w.watch.until("NATS_DESTINATION_NOT_STORED")
        assert trio.current_time() < 1
        assert (event.route, event.connection, event.subject, event.reason) == ("stored", "main", "out.>", "no_stream")
        assert "create one" in event.detail
        w.broker.publish("in.x")
        await trio.sleep(60)
        assert len(w.watch.of("NATS_DESTINATION_NOT_STORED")) == 1
        add_out(w)
        await w.watch.until("NATS_DESTINATION_STORED")
        await trio.sleep(60)
        assert len(w.watch.of("NATS_DESTINATION_STORED")) == 1


async def test_the_first_publish_that_nobody_takes_is_told_at_once(autojump_clock: MockClock) -> None:
    async with world([TO_STREAM], brokers=one_broker()) as w:
        await trio.sleep(1)
        delete_out(w)
        began = trio.current_time()
        w.broker.publish("in.x")
        event = await w.watch.until("NATS_DESTINATION_NOT_STORED")
        assert event.at - began < 0.1
        assert event.reason == "no_responders"
        add_out(w)


async def test_who_may_not_look_streams_up_is_ready_until_a_publish_is_refused(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.API.>")
    async with world([TO_STREAM], brokers=brokers) as w:
        assert not why(w)
        await probe_arrives(w)
        await trio.sleep(3600)
        assert not why(w)
        assert [event.reason for event in w.watch.of("NATS_DESTINATIONS_UNKNOWN")] == ["permission_denied"]
        delete_out(w)
        assert not await probe(w)
        await until_unready(w, "no_responders")
        add_out(w)
        await until_ready(w)
        await probe_arrives(w)


async def test_what_another_account_stores_counts_though_no_stream_is_found_here(autojump_clock: MockClock) -> None:
    """The same messages are stored, by a stream that no lookup tells of."""
    brokers = one_broker()
    server = brokers["main"]._server
    find = server.streams_of
    server.streams_of = lambda subject: []  # type: ignore[method-assign]
    async with world([TO_STREAM], brokers=brokers) as w:
        assert "no stream takes" in why(w)
        await probe_arrives(w)
        for _ in range(60):
            await trio.sleep(1)
            assert not why(w)
        server.streams_of = find  # type: ignore[method-assign]
        await trio.sleep(WITHIN)
        delete_out(w)
        await until_unready(w, "no stream takes")


async def test_each_stream_is_looked_up_once_a_time_however_many_routes_send_to_it(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    server = brokers["main"]._server
    asked: list[str] = []
    state, find = server.state_of_stream, server.streams_of
    server.state_of_stream = lambda name, now: asked.append(name) or state(name, now)  # type: ignore[method-assign, func-returns-value]
    server.streams_of = lambda subject: asked.append(subject) or find(subject)  # type: ignore[method-assign, func-returns-value]
    routes = [core(f"in.{n}", to(f"out.{n}", jetstream=True), name=f"route{n}") for n in range(20)]
    async with world(routes, brokers=brokers) as w:
        await trio.sleep(1)
        asked.clear()
        await trio.sleep(50)
        assert asked == ["OUT"] * 10
        assert not why(w)


async def test_two_destinations_of_one_template_are_told_apart(autojump_clock: MockClock) -> None:
    both = [to("out.>", jetstream=True), to("out.>", "edge", jetstream=True)]
    brokers = two_brokers()
    brokers["main"].add_stream("HERE", ["out.>"])
    async with world([core("in.>", *both, name="both", connection="main")], brokers=brokers) as w:
        assert not why(w)
        brokers["edge"].delete_stream("OUT")
        for _ in range(10):
            w.broker.publish("in.x")
            await trio.sleep(1)
        assert "on edge" in why(w)
        assert "on main" not in why(w)
        brokers["edge"].add_stream("OUT", ["out.>"])
        await until_ready(w)


async def test_nothing_is_stored_without_its_payload_when_a_consumer_is_edited(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        await probe_arrives(w)
        headers_only(True)(w)
        for number in range(3):
            w.broker.publish("in.x", b"%d" % number)
        await until_unready(w, "exists with another configuration: it delivers only headers")
        assert {event.reason for event in w.watch.of("NATS_SUBSCRIBE_ERROR")} == {"consumer_mismatch"}
        headers_only(False)(w)
        await until_ready(w)
        await eventually(lambda: len(w.payloads("OUT")) == 4, 60.0)
        assert w.payloads("OUT")[1:] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0])
async def test_nor_when_it_is_edited_again_and_again(autojump_clock: MockClock, seconds: float) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        w.broker.trouble.travel(lambda: 0.01)
        for number in range(5):
            headers_only(True)(w)
            for part in (b"a", b"b"):
                w.broker.publish("in.x", b"%d%b" % (number, part))
                await trio.sleep(seconds)
            headers_only(False)(w)
            await trio.sleep(seconds)
        await eventually(lambda: len(w.payloads("OUT")) >= 10, 60.0)
        assert sorted(w.payloads("OUT")) == [b"%d%b" % (number, part) for number in range(5) for part in (b"a", b"b")]


async def test_signs_of_life_go_on_while_payloads_are_in_doubt(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = FakePullConsumer.check

    async def slow(consumer: FakePullConsumer) -> str | None:
        await trio.sleep(20)
        return await check(consumer)

    async with world([STREAM], brokers=one_broker()) as w:
        monkeypatch.setattr(FakePullConsumer, "check", slow)
        await trio.sleep(5)
        w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
        w.broker.publish("in.x", b"1")
        await eventually(lambda: w.payloads("OUT") == [b"", b"1"], 100)
        assert (w.live.connections["main"].state.established, w.live.connections["main"].state.lost) == (1, 0)
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0


async def test_a_forged_message_in_the_inbox_puts_nothing_in_doubt(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(consumer: FakePullConsumer) -> str | None:
        await trio.sleep_forever()

    async with world([STREAM], brokers=one_broker()) as w:
        monkeypatch.setattr(FakePullConsumer, "check", never)
        await trio.sleep(5)
        inbox = w.live.connections["main"].inbox.decode()
        for _ in range(100):
            w.broker.publish(f"{inbox}-pull-1", b"", {"Nats-Msg-Size": "5"}, reply="elsewhere")
        await probe_arrives(w)


async def test_a_sender_that_writes_that_header_stops_nothing(autojump_clock: MockClock) -> None:
    async with world([STREAM], brokers=one_broker()) as w:
        for number in range(3):
            w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
            w.broker.publish("in.x", b"%d" % number)
            await trio.sleep(1)
        await eventually(lambda: len(w.payloads("OUT")) == 6, 1.0)
        assert w.payloads("OUT") == [b"", b"0", b"", b"1", b"", b"2"]
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0
        assert not why(w)


async def test_a_stream_that_may_not_be_looked_at_counts_as_fine_while_it_is_there(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].deny_publish("$JS.API.STREAM.INFO.OUT")
    brokers["main"].add_stream("OTHER", ["other.>"])
    routes = [TO_STREAM, core("else.>", to("other.>", jetstream=True), name="else")]
    async with world(routes, brokers=brokers) as w:
        assert not why(w)
        await probe_arrives(w)
        await trio.sleep(60)
        assert not why(w)
        w.broker.delete_stream("OTHER")
        await until_unready(w, "no stream takes 'other.>'")
        assert "'out.>'" not in why(w)
        delete_out(w)
        await until_unready(w, "no stream takes 'out.>'")
        assert not w.watch.of("NATS_DESTINATIONS_UNKNOWN")
