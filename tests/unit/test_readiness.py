"""Readiness agrees with a probe: in each state that can be produced, on the router's own clock and with its own times.

A route is broken; within ten seconds the answer is 503, with a reason that names the cause, and a probe that is sent
then does not arrive. It is repaired; the answer is 200 again and a probe arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.link import ConsumerState
from router_trio.states import HANDLER_QUIET
from router_trio.telemetry.http.status import readiness
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, one_broker, stream, to, world
from tests.unit.readiness import (
    STREAM,
    TO_STREAM,
    add_out,
    delete_out,
    fill_out,
    limit,
    probe,
    probe_arrives,
    until_ready,
    until_unready,
    why,
)

CHECK = "$JS.API.CONSUMER.INFO.IN.router"

CORE = core("in.>", "heard.>", name="core")


@dataclass(frozen=True)
class State:
    """How a state is produced and repaired, on which routes, and a text that its reason contains.

    `probe_helps`: only a message that gets through shows that it is repaired.
    """

    routes: list[dict[str, Any]]
    break_it: Callable[[World], None]
    mend: Callable[[World], None]
    reason: str
    broken_at_start: bool = False
    probe_breaks: bool = False
    probe_helps: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def replace_out(w: World) -> None:
    delete_out(w)
    add_out(w)


def subjects(*subjects: str) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.edit_subjects("OUT", *subjects)


def deny(pattern: str) -> Callable[[World], None]:
    return lambda w: w.broker.deny_publish(pattern)


def allow(pattern: str) -> Callable[[World], None]:
    return lambda w: w.broker.allow_publish(pattern)


def pause(seconds: float) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.pause_consumer("IN", "router", seconds)


def elect(stream: str, seconds: float) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.elect(stream, seconds)


def cut_off(stream: str, is_cut_off: bool) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.cut_off(stream, is_cut_off)


def headers_only(on: bool) -> Callable[[World], None]:
    return lambda w: w.broker.trouble.edit_consumer("IN", "router", headers_only=on)


def deny_checks_with_size_header(w: World) -> None:
    w.broker.deny_publish(CHECK)
    w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})


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
    "source cut off from its cluster": State(
        [STREAM], cut_off("IN", True), cut_off("IN", False), "durable is not avail"
    ),
    "destination without a leader": State([TO_STREAM], elect("OUT", 1e6), elect("OUT", 0), "as if it had no leader"),
    "destination cut off from its cluster": State([TO_STREAM], cut_off("OUT", True), cut_off("OUT", False), "cut off"),
    "consumer delivers only headers": State([STREAM], headers_only(True), headers_only(False), "headers_only"),
    "payloads that can't be verified": State([STREAM], deny_checks_with_size_header, allow(CHECK), "headers_only"),
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
            await trio.sleep(60)  # messages refused from a stream are redelivered without help
            assert await probe(w)
        await until_ready(w)
        await probe_arrives(w)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["core", "stream"])
async def test_a_stuck_handler_is_not_ready_until_it_returns(source: str, autojump_clock: MockClock) -> None:
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


async def test_a_slow_handler_that_returns_is_ready(autojump_clock: MockClock) -> None:
    async def handler(message: Message) -> Message:
        await trio.sleep(HANDLER_QUIET - 1)
        return message

    async with world(handlers=[handled(handler, subject="in.>", to="heard.>")], shutdown_timeout=60) as w:
        for number in range(4):
            w.broker.publish("in.x", b"%d" % number)
        for _ in range(20):
            await trio.sleep(1)
            assert not why(w)


async def test_nothing_is_stored_without_its_payload_after_a_consumer_is_edited(autojump_clock: MockClock) -> None:
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
async def test_repeated_edits_of_a_consumer_store_nothing_without_its_payload(
    autojump_clock: MockClock, seconds: float
) -> None:
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


async def test_messages_that_are_kept_until_payloads_are_verified_are_bounded(autojump_clock: MockClock) -> None:
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=4, ack_wait="2s")
    async with world([route], brokers=one_broker()) as w:
        await probe_arrives(w)
        w.broker.deny_publish(CHECK)
        for number in range(20):
            w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
            w.broker.publish("in.x", b"%d" % number)
        await until_unready(w, "neither it nor a message behind it is routed until the consumer can be checked")
        await trio.sleep(600)
        state = w.broker._server.consumers["IN", "router"].state_at(trio.current_time())
        assert state.deliveries <= 1 + 2 * 4, "one probe, and what was requested"
        w.broker.allow_publish(CHECK)
        await until_ready(w)
        await eventually(lambda: len(w.payloads("OUT")) == 41, 60)
        assert w.payloads("OUT")[1:] == [each for number in range(20) for each in (b"", b"%d" % number)]


async def test_a_consumer_that_is_deleted_while_payloads_are_verified_is_created_again(
    autojump_clock: MockClock,
) -> None:
    async with world([stream("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=1)], brokers=one_broker()) as w:
        await probe_arrives(w)
        deny_checks_with_size_header(w)
        await until_unready(w, "headers_only")
        w.broker.delete_consumer("IN", "router")
        w.broker.allow_publish(CHECK)
        await until_ready(w)
        await eventually(lambda: len(w.payloads("OUT")) == 2, 60.0)
        assert w.payloads("OUT")[1] == b""
        assert {event.reason for event in w.watch.of("NATS_SUBSCRIBE_ERROR")} == {"consumer_deleted"}
        await probe_arrives(w)


async def test_messages_sent_before_the_request_to_redeliver_do_not_pass_redelivered_ones(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, new = FakePullConsumer.again, [b"2", b"3"]

    async def late(consumer: FakePullConsumer, sequences: Sequence[int]) -> bool:
        if new:
            w.broker.publish("in.x", new.pop(0))
            await trio.sleep(0.1)
        return await again(consumer, sequences)

    async with world([STREAM], brokers=one_broker()) as w:
        await trio.sleep(5)
        monkeypatch.setattr(FakePullConsumer, "again", late)
        w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
        w.broker.publish("in.x", b"1")
        await trio.sleep(5)
        assert w.payloads("OUT") == [b"", b"1", b"2", b"3"]
        await probe_arrives(w)


async def test_liveness_checks_continue_while_payloads_are_verified(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = FakePullConsumer.check

    async def slow(consumer: FakePullConsumer, *, oldest: bool = False) -> ConsumerState:
        await trio.sleep(20)
        return await check(consumer, oldest=oldest)

    async with world([STREAM], brokers=one_broker()) as w:
        monkeypatch.setattr(FakePullConsumer, "check", slow)
        await trio.sleep(5)
        w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
        w.broker.publish("in.x", b"1")
        await eventually(lambda: w.payloads("OUT") == [b"", b"1"], 100)
        assert (w.live.connections["main"].state.established, w.live.connections["main"].state.lost) == (1, 0)
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0


async def test_a_forged_message_in_the_inbox_triggers_no_verification(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(consumer: FakePullConsumer, *, oldest: bool = False) -> NoReturn:
        await trio.sleep_forever()

    async with world([STREAM], brokers=one_broker()) as w:
        monkeypatch.setattr(FakePullConsumer, "check", never)
        await trio.sleep(5)
        inbox = w.live.connections["main"].inbox.decode()
        for _ in range(100):
            w.broker.publish(f"{inbox}-pull-1", b"", {"Nats-Msg-Size": "5"}, reply="elsewhere")
        await probe_arrives(w)


@pytest.mark.parametrize("max_in_flight", [1, 100])
async def test_a_sender_that_sets_the_size_header_stops_nothing(autojump_clock: MockClock, max_in_flight: int) -> None:
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=max_in_flight)
    async with world([route], brokers=one_broker()) as w:
        for number in range(3):
            w.broker.publish("in.x", b"", {"Nats-Msg-Size": "5"})
            w.broker.publish("in.x", b"%d" % number)
            await trio.sleep(1)
        await eventually(lambda: len(w.payloads("OUT")) == 6, 1.0)
        assert w.payloads("OUT") == [b"", b"0", b"", b"1", b"", b"2"]
        assert w.watch.count("NATS_SUBSCRIBE_ERROR") == 0
        assert not why(w)


async def test_an_existing_stream_that_may_not_be_inspected_counts_as_ready(autojump_clock: MockClock) -> None:
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
