"""A server's own words for a refusal are reported: which stream, on which connection, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import PublishError
from router_trio.errors.codes import explained
from router_trio.errors.quotes import LONGEST_TEXT
from router_trio.routing.handlers.errors import failure_of
from router_trio.states import PAUSED
from router_trio.telemetry.http.status import readiness, status
from router_trio.testing import streams
from tests.support.eventually import eventually
from tests.support.world import World, core, fill, one_broker, stream, world
from tests.unit.readiness import until_unready, why
from tests.unit.routing.stream.giving_up import DEAD, NAME, brokers, dead

FULL = f"stream 'OUT': {explained(10077, 'maximum messages exceeded')}"


def shown(w: World) -> dict[str, Any]:
    found: dict[str, Any] = status(w.live, 1.0)["routes"]["route"]
    return found


def route(**more: Any) -> dict[str, Any]:
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", **more)


async def test_the_refusal_of_a_full_stream_is_in_the_dead_letter_the_status_and_the_log(
    autojump_clock: MockClock,
) -> None:
    async with world([route(retry={"not": ["limit"]}, dead_letter=DEAD)], brokers=brokers()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 1)
        await eventually(lambda: w.route.dead_lettered == 1, 60)
        detail = f"the destination 'out.{{{{wildcard(1)}}}}' on connection main did not accept the message: {FULL}"
        assert dict(dead(w)[0].headers.pairs())[f"{NAME}Detail"] == detail
        assert shown(w)["last_failure"]["reason"] == "limit"
        assert shown(w)["last_failure"]["detail"] == detail
        assert w.watch.of("NATS_PUBLISH_WITH_ACK_ERROR")[-1].detail == FULL


async def test_the_text_of_a_server_is_bounded_and_shows_no_secret(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = "no room at nats://user:hunter2@edge:4222 " + "maximum " * 1000
    monkeypatch.setattr(streams, "FULL", streams.FULL | {"description": description})
    async with world([route(retry={"not": ["limit"]}, dead_letter=DEAD)], brokers=brokers()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 1)
        await eventually(lambda: w.route.dead_lettered == 1, 60)
        for detail in (dict(dead(w)[0].headers.pairs())[f"{NAME}Detail"], shown(w)["last_failure"]["detail"]):
            assert "no room at nats://edge:4222 maximum" in detail
            assert "hunter2" not in detail
            assert len(detail) <= LONGEST_TEXT


async def test_the_refusal_of_a_core_publish_is_reported_too(autojump_clock: MockClock) -> None:
    async with world([core("in.>", "heard.>")], brokers=one_broker()) as w:
        w.broker.deny_publish("heard.>")
        w.broker.publish("in.x")
        await eventually(lambda: w.route.last_failure is not None)
        assert shown(w)["last_failure"]["detail"].startswith(
            "the destination 'heard.>' on connection main did not accept the message: "
        )
        assert "heard.x" in shown(w)["last_failure"]["detail"].lower()


async def test_a_route_waiting_for_a_full_stream_reports_why(
    autojump_clock: MockClock,
) -> None:
    async with world([route(max_in_flight=6, retry={"initial": "1h", "max": "1h"})], brokers=one_broker()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 1, subjects="abcdefghij")
        await eventually(lambda: w.route.state == PAUSED, 60)
        reason = shown(w)["reason"]
        assert reason.startswith("destination 'out.{{wildcard(1)}}' on connection main refuses messages: limit (")
        assert FULL in reason
        assert "one message is tried every" in reason
        reasons = [one["reason"] for one in readiness(w.live, trio.current_time())[1]["reasons"]]
        assert reasons == [reason], "once, though the destination has it as well"
        w.broker.trouble.limit("OUT", None)


async def test_messages_waiting_behind_one_of_their_subject_are_counted_separately(autojump_clock: MockClock) -> None:
    async with world([route(retry={"initial": "1h", "max": "1h"})], brokers=one_broker()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 3)
        waits = "1 message waits to be redelivered and retried, and 2 more of the same subjects wait behind; the "
        await eventually(lambda: (w.route.reason or "").startswith(waits), 60)
        w.broker.trouble.limit("OUT", None)


@pytest.mark.parametrize("publishes", [False, True], ids=["looked up", "published"])
async def test_a_deleted_stream_is_named(publishes: bool, autojump_clock: MockClock) -> None:
    async with world([route()], brokers=one_broker()) as w:
        await trio.sleep(1)
        w.broker.delete_stream("OUT")
        if publishes:
            fill(w.broker, 1)
        await until_unready(w, " (stream 'OUT' did, and was deleted or has other subjects now; ")
        assert "the server reported that stream 'OUT' was deleted" in why(w)
        w.broker.add_stream("OUT", ["out.>"])


async def test_a_program_gets_the_reason_and_the_stream_of_a_refused_publish(autojump_clock: MockClock) -> None:
    async with world(brokers=one_broker()) as w:
        w.broker.trouble.limit("OUT", 0)
        with pytest.raises(PublishError) as caught:
            await w.live.publish_with_ack("out.x", b"")
        assert str(caught.value) == f"the stream or the server refused it: {FULL} (failed: limit)"
        w.broker.deny_publish("out.>")
        fate = await (await w.live.publish("out.x", b"")).settled()
        assert (fate.name, fate.reason) == ("failed", "permission_denied")
        assert "out.x" in fate.detail.lower()
        assert repr(fate) == f"Fate(name='failed', reason='permission_denied', detail={fate.detail!r})"


async def test_a_publish_that_times_out_reports_the_refusals_meanwhile(autojump_clock: MockClock) -> None:
    async with world(brokers=one_broker()) as w:
        w.broker.delete_stream("OUT")
        with pytest.raises(PublishError) as caught:
            await w.live.publish_with_ack("out.x", b"", timeout=1)
        assert caught.value.reason == "no_responders"
        detail = "no PubAck within 1 s, and the last answer was: no stream takes this subject"
        assert w.watch.of("NATS_PUBLISH_WITH_ACK_ERROR")[-1].detail == detail


def test_the_error_of_a_handler_is_for_the_dead_letter_unless_it_may_be_shown() -> None:
    failure = failure_of(ValueError("payload"))
    assert (failure.detail, failure.shown) == ("ValueError: payload", None)
    assert replace(failure, quotes=False).shown == "ValueError: payload"


async def test_a_breaker_reports_the_last_failure(autojump_clock: MockClock) -> None:
    broken = stream(
        "IN", {"subject": "out.x", "jetstream": True, "breaker": {"failures": 2, "pause": "60s"}}, filter="in.*"
    )
    async with world([broken], brokers=one_broker()) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 1, subjects="abc")
        detail = f"2 failures in a row, the last one limit ({FULL})"
        await eventually(lambda: detail in shown(w).get("reason", ""), 60)
        w.broker.trouble.limit("OUT", None)
