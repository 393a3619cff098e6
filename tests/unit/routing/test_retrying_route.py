"""Core subscriptions with retry or dead letters, on fake brokers: failed messages wait in memory, and all are
counted.
"""

from __future__ import annotations

import signal
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Reject, Retry
from router_trio.outbox.capacity import REFUSES_FOR_LONG
from router_trio.routing.policy import retry_queue
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, numbers, one_broker, to, two_brokers, world
from tests.unit.routing.by_key import unchanged

DEAD: dict[str, Any] = {"subject": "dead.{{wildcard(1)}}"}
NAME = "Router-Dead-Letter-"


def broker() -> dict[str, FakeBroker]:
    """Return a broker `main` with the stream `DEAD`."""
    made = FakeBroker()
    made.add_stream("DEAD", ["dead.>"])
    return {"main": made}


def publish(w: World, *payloads: bytes, subject: str = "core.x", **options: Any) -> None:
    for payload in payloads:
        w.broker.publish(subject, payload, **options)


async def test_a_message_that_fails_is_retried_until_it_passes(autojump_clock: MockClock) -> None:
    times: list[float] = []

    def pick(message: Message) -> Message:
        if message.payload == b"bad":
            times.append(trio.current_time())
            if len(times) < 4:
                raise ValueError("not yet")
        return message.replace(subject="out.x")

    async with world(handlers=[handled(pick, subject="core.*", to=to("out.x"), retry={})], brokers=broker()) as w:
        publish(w, b"1", b"bad", b"2", reply="_INBOX.asker")
        await eventually(lambda: len(w.broker.published) == 3)
        assert [one.payload for one in w.broker.published] == [b"1", b"2", b"bad"]
        assert [round(later - earlier) for earlier, later in pairwise(times)] == [1, 2, 4]
        assert w.route_ledger() == (3, 0, {"routed": 3})
        assert dict(w.route.failed) == {"handler_error": 3}
        assert w.route.durations.total == pytest.approx(7.0, abs=0.1)


async def test_a_message_is_in_hand_between_its_attempts(autojump_clock: MockClock) -> None:
    def fail(message: Message) -> Message:
        raise Retry(after=5)

    async with world(handlers=[handled(fail, subject="core.*", to=to("out.x"), retry={"attempts": 3})]) as w:
        publish(w, b"1")
        await trio.sleep(7)
        assert w.route_ledger() == (1, 1, {})
        await eventually(lambda: w.route_ledger() == (1, 0, {"lost": 1}))
        assert trio.current_time() == pytest.approx(10.0, abs=0.5)
        assert dict(w.route.given_up) == {"retry": 1}
        (given_up,) = w.watch.of("ROUTE_MESSAGE_GIVEN_UP")
        assert (given_up.reason, given_up.attempts, given_up.stream) == ("retry", 3, None)


async def test_without_retry_a_failed_message_is_lost(autojump_clock: MockClock) -> None:
    calls = 0

    def fail(message: Message) -> Message:
        nonlocal calls
        calls += 1
        raise Retry(after=1)

    async with world(handlers=[handled(fail, subject="core.*", to=to("out.x"))]) as w:
        publish(w, b"1")
        await trio.sleep(60)
        assert calls == 1
        assert w.route_ledger() == (1, 0, {"lost": 1})


async def test_a_retry_is_sent_only_to_destinations_that_have_not_confirmed(autojump_clock: MockClock) -> None:
    there = two_brokers()
    there["edge"].deny_publish("out.x")
    route = core("core.*", to("copy"), to("out.x", "edge", jetstream=True), connection="main", retry={"initial": "1s"})
    async with world([route], brokers=there) as w:
        publish(w, b"1", b"2")
        await trio.sleep(10)
        there["edge"].allow_publish("out.x")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}), 60)
        assert Counter(w.subjects("main")) == {"copy": 2}
        assert sorted(w.payloads("OUT", "edge")) == [b"1", b"2"]


@pytest.mark.parametrize("message_id", ["own", "sender"])
async def test_a_retry_after_a_lost_puback_is_not_stored_twice(autojump_clock: MockClock, message_id: str) -> None:
    route = core("in.*", to("out.x", jetstream=True), retry={"initial": "1s"}, message_id=message_id)
    async with world([route], brokers=one_broker()) as w:
        w.broker.trouble.lose("puback", 100)
        publish(w, b"1", subject="in.x", headers={"Nats-Msg-Id": "7"})
        await eventually(lambda: w.route.failed["timeout"] == 1, 60)
        w.broker.trouble.lose("puback", 0)
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}), 60)
        assert w.payloads("OUT") == [b"1"]


async def test_a_message_that_is_given_up_is_dead_lettered(autojump_clock: MockClock) -> None:
    def fail(message: Message) -> Message:
        if message.payload == b"2":
            raise Reject("no lines")
        raise ValueError("never")

    handler = handled(fail, subject="core.*", to=to("out.x"), retry={"attempts": 2}, dead_letter=DEAD)
    async with world(handlers=[handler], brokers=broker()) as w:
        publish(w, b"1", b"2", headers={"Nats-Msg-Id": "7", "Nats-TTL": "1s", "A": "b"})
        await eventually(lambda: w.route_ledger() == (2, 0, {"dead_lettered": 2}))
        second, first = w.broker.messages("DEAD")
        headers = dict(first.headers.pairs())
        assert headers.pop("Nats-Msg-Id")
        assert headers.pop(f"{NAME}Time")
        assert headers == {
            "A": "b",
            f"{NAME}Route": "route",
            f"{NAME}Reason": "handler_error",
            f"{NAME}Detail": "ValueError: never",
            f"{NAME}Attempts": "2",
            f"{NAME}Subject": "core.x",
            f"{NAME}Message-Id": "7",
        }
        assert (first.subject, first.payload, second.payload) == ("dead.x", b"1", b"2")
        assert (second.headers[f"{NAME}Reason"], second.headers[f"{NAME}Detail"]) == ("rejected", "no lines")
        assert first.headers["Nats-Msg-Id"] != second.headers["Nats-Msg-Id"], "a sender may use an id again"


async def test_dead_letters_need_no_retry(autojump_clock: MockClock) -> None:
    route = core("core.*", "out.{{split(1,-)}}", dead_letter=DEAD)
    async with world([route], brokers=broker()) as w:
        for token in ("a-b", "--", "c"):
            publish(w, b"x", subject=f"core.{token}")
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 2, "dead_lettered": 1}))
        (letter,) = w.broker.messages("DEAD")
        assert letter.subject == "dead.--"
        assert letter.headers[f"{NAME}Reason"] == "mapping"
        assert dict(w.route.failed) == {"mapping": 1}


async def test_a_dead_letter_waits_for_its_connection(autojump_clock: MockClock) -> None:
    there = broker() | {"main": FakeBroker(), "edge": broker()["main"]}
    route = core(
        "core.*", to("out.{{split(1,-)}}", "main"), connection="main", dead_letter=DEAD | {"connection": "edge"}
    )
    async with world([route], brokers=there) as w:
        await w.lose("edge")
        publish(w, b"x", subject="core.--")
        await eventually(lambda: w.entry("edge")["pending"] == 1)
        await w.find("edge")
        await eventually(lambda: w.route_ledger() == (1, 0, {"dead_lettered": 1}))


async def test_a_dead_letter_that_can_not_be_stored_is_reported_as_lost(autojump_clock: MockClock) -> None:
    there = broker()
    there["main"].deny_publish("dead.>")
    route = core("core.*", "out.{{split(1,-)}}", dead_letter=DEAD)
    async with world([route], brokers=there) as w:
        publish(w, b"x", subject="core.--")
        await eventually(lambda: w.route_ledger() == (1, 0, {"lost": 1}))
        assert dict(w.route.failed) == {"mapping": 1, "dead_letter": 1}
        (event,) = w.watch.of("ROUTE_DEAD_LETTER_NOT_STORED")
        assert event.reason == "permission_denied"


async def test_routes_that_decide_by_content_retry_and_dead_letter_too(autojump_clock: MockClock) -> None:
    route = core("core.*", "out.x", retry={"attempts": 2, "not": ["expression"]}, dead_letter=DEAD)
    async with world([route | {"when": "body.n > 0"}], brokers=broker()) as w:
        publish(w, b'{"n": 1}', b'{"n": 0}', b"no json")
        expected = {"routed": 1, "filtered": 1, "dead_lettered": 1}
        await eventually(lambda: w.route_ledger() == (3, 0, expected))
        (letter,) = w.broker.messages("DEAD")
        assert letter.headers[f"{NAME}Reason"] == "expression"
        assert letter.headers[f"{NAME}Attempts"] == "1"


async def test_failed_messages_beyond_the_room_for_retries_are_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_queue, "MOST_MESSAGES", 2)

    def fail(message: Message) -> Message:
        raise ValueError("never")

    async with world(handlers=[handled(fail, subject="core.*", to=to("out.x"), retry={})], brokers=broker()) as w:
        publish(w, *(b"%d" % number for number in range(5)))
        await trio.sleep(0.5)
        assert w.route_ledger() == (5, 2, {"lost": 3})
        assert w.route.failed["retry_full"] == 3
        assert [event.reason for event in w.watch.of("ROUTE_MESSAGE_FAILED")].count("retry_full") == 3


# --- the end ---


async def test_a_message_waiting_for_a_retry_at_the_end_is_lost(autojump_clock: MockClock) -> None:
    def fail(message: Message) -> Message:
        raise ValueError("never")

    async with world(handlers=[handled(fail, subject="core.*", to=to("out.x"), retry={"initial": "1m"})]) as w:
        publish(w, b"1", b"2")
        await eventually(lambda: w.route.failed["handler_error"] == 2)
        ended_at = trio.current_time()
    assert trio.current_time() - ended_at < 1, "the end waits for the next attempt"
    assert w.route_ledger() == (2, 0, {"lost": 2})
    assert w.route.failed["shutdown"] == 2
    assert w.live.unsettled == 2


async def test_a_message_waiting_for_a_retry_at_the_end_is_dead_lettered(autojump_clock: MockClock) -> None:
    def fail(message: Message) -> Message:
        raise ValueError("never")

    retry = {"initial": "1m"}
    handler = handled(fail, subject="core.*", to=to("out.x"), retry=retry, dead_letter=DEAD)
    async with world(handlers=[handler], brokers=broker()) as w:
        publish(w, b"1", b"2")
        await eventually(lambda: w.route.failed["handler_error"] == 2)
    assert w.route_ledger() == (2, 0, {"dead_lettered": 2})
    assert {one.headers[f"{NAME}Reason"] for one in w.broker.messages("DEAD")} == {"handler_error"}
    assert w.live.unsettled == 0


async def test_messages_in_and_behind_the_handler_at_the_end_are_lost(autojump_clock: MockClock) -> None:
    async def hang(message: Message) -> Message:
        if message.payload == b"again":
            raise Retry(after=0.1)
        await trio.sleep_forever()
        return message

    handler = handled(hang, subject="core.*", to=to("out.x"), retry={})
    async with world(handlers=[handler], brokers=broker(), shutdown_timeout=1) as w:
        publish(w, b"again", b"hangs", b"behind")
        await eventually(lambda: w.route.handling == 1)
    assert w.route_ledger() == (3, 0, {"lost": 3})
    assert w.live.unsettled == 3


async def test_a_message_being_retried_at_the_end_is_lost(autojump_clock: MockClock) -> None:
    tried = 0

    async def hang(message: Message) -> Message:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise Retry(after=0.1)
        await trio.sleep_forever()
        return message

    handler = handled(hang, subject="core.*", to=to("out.x"), retry={})
    async with world(handlers=[handler], brokers=broker(), shutdown_timeout=1) as w:
        publish(w, b"1")
        await eventually(lambda: w.route.handling == 1)
    assert w.route_ledger() == (1, 0, {"lost": 1})


async def test_a_message_that_fails_during_the_shutdown_is_not_retried(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(1)
        raise ValueError("never")

    handler = handled(slow, subject="core.*", to=to("out.x"), retry={}, dead_letter=DEAD)
    async with world(handlers=[handler], brokers=broker()) as w:
        publish(w, b"1", b"2")
        await eventually(lambda: w.route.handling == 1)
    assert w.route_ledger() == (2, 0, {"dead_lettered": 2})


@pytest.mark.parametrize("handles", [True, False])
async def test_no_more_messages_are_routed_than_the_destination_has_room_for(
    autojump_clock: MockClock, handles: bool
) -> None:
    limits = {"edge": {"max_pending_operations": 2, "on_pending_full": "block"}}
    route = core("core.*", to("out.x", "edge"), connection="main", retry={})
    if handles:
        route |= {"handler": f"{unchanged.__module__}:{unchanged.__name__}"}
    async with world([route], brokers={"main": FakeBroker(), "edge": FakeBroker()}, connections=limits) as w:
        await w.lose("edge")
        publish(w, *numbers(10))
        await eventually(lambda: w.route.received == 10)
        assert w.entry("edge")["pending"] == 2
        await w.find("edge")
        await eventually(lambda: w.route_ledger() == (10, 0, {"routed": 10}))
        assert dict(w.route.failed) == {}


async def test_a_message_whose_handler_is_interrupted_by_a_signal_is_lost(autojump_clock: MockClock) -> None:
    def interrupted(message: Message) -> Message:
        signal.raise_signal(signal.SIGINT)
        return message

    w: World | None = None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        async with world(handlers=[handled(interrupted, subject="core.*", to=to("out.x"), retry={})]) as w:
            publish(w, b"1", b"2")
            await trio.sleep(5)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the signal was lost")
    finally:
        signal.signal(signal.SIGINT, before)
    assert w is not None
    assert w.route_ledger() == (2, 0, {"lost": 2})
    assert w.live.unsettled == 2


async def test_retries_do_not_starve_new_messages(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(0.01)
        if message.payload == b"bad":
            raise Retry(after=0)
        return message.replace(subject="out.x")

    async with world(handlers=[handled(slow, subject="core.*", to=to("out.x"), retry={})], brokers=broker()) as w:
        publish(w, *[b"bad"] * 10)
        await trio.sleep(5)
        publish(w, b"good")
        await eventually(lambda: len(w.broker.published) == 1, 30)


async def test_the_dead_letter_of_a_dropped_message_takes_no_puback_of_the_message_it_made_room_for(
    autojump_clock: MockClock,
) -> None:
    route = core("core.*", to("out.x", jetstream=True), dead_letter=DEAD)
    async with world([route], brokers=broker(), max_pending_operations=2) as w:
        publish(w, b"1")
        await trio.sleep(REFUSES_FOR_LONG + 1)
        publish(w, b"2")
        await eventually(lambda: w.payloads("DEAD") == [b"1"])
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.payloads("OUT") == [b"2"])
        assert w.entry()["settled"] == {"acked": 2, "dropped": 1}, "each has its own PubAck"
        assert w.route_ledger() == (2, 0, {"routed": 1, "dead_lettered": 1})


async def test_at_the_end_dead_letters_do_not_wait_for_a_destination(autojump_clock: MockClock) -> None:
    async def pick(message: Message) -> Message:
        if message.payload == b"bad":
            raise ValueError
        await trio.sleep(1)
        return message

    brokers = broker() | {"edge": FakeBroker()}
    later = {"initial": "1h", "max": "1h"}
    handler = handled(pick, subject="core.*", to=to("out", "edge"), connection="main", retry=later, dead_letter=DEAD)
    async with world(handlers=[handler], brokers=brokers, shutdown_timeout=5.0) as w:
        publish(w, b"bad")
        await eventually(lambda: w.route.failed["handler_error"] == 1)
        publish(w, b"good")
        await w.lose("edge")
    assert w.payloads("DEAD") == [b"bad"]
    assert w.route.settled["dead_lettered"] == 1
