"""Messages that a route from a stream gives up, on fake brokers: each is terminated only when its dead letter is
stored.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.link import ConsumerSpec
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.support.eventually import eventually
from tests.support.world import fill, handled, numbers, stream, to, unacked, world
from tests.unit.routing.stream.giving_up import DEAD, FROM, NAME, brokers, dead


def always(message: Message) -> None:
    raise ValueError("never")


async def test_a_message_that_fails_each_time_is_dead_lettered_once_with_the_reason(autojump_clock: MockClock) -> None:
    calls = 0

    def fail(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("it can't be\r\nread")

    handler = handled(fail, to=to("out.x", jetstream=True), retry={"attempts": 3}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        headers = {"Nats-Msg-Id": "7", "Nats-TTL": "1h", "Custom": "1", f"{NAME}Reason": "old", f"{NAME}Odd": "kept"}
        w.broker.publish("in.x", b"payload", headers)
        await eventually(lambda: w.route.dead_lettered == 1)
        assert unacked(w) == 0
        (letter,) = dead(w)
        assert (letter.subject, letter.payload) == ("dead.x", b"payload")
        headers = dict(letter.headers.pairs())
        assert headers.pop("Nats-Msg-Id").startswith("IN:1:")
        assert headers.pop(f"{NAME}Time").endswith("Z")
        assert headers == {
            "Custom": "1",
            f"{NAME}Odd": "kept",
            f"{NAME}Route": "route",
            f"{NAME}Reason": "handler_error",
            f"{NAME}Detail": "ValueError: it can't be\\r\\nread",
            f"{NAME}Attempts": "3",
            f"{NAME}Subject": "in.x",
            f"{NAME}Stream": "IN",
            f"{NAME}Sequence": "1",
            f"{NAME}Message-Id": "7",
        }
        assert calls == 3
        assert w.route_ledger() == (3, 0, {"returned": 2, "dead_lettered": 1})
        assert dict(w.route.given_up) == {"handler_error": 1}
        (event,) = w.watch.of("ROUTE_MESSAGE_DEAD_LETTERED")
        assert (event.reason, event.attempts, event.stream, event.sequence) == ("handler_error", 3, "IN", 1)


@pytest.mark.parametrize("mark", [b"\n", b"\r"])
async def test_no_header_is_forged_by_a_message_id_with_a_line_break(autojump_clock: MockClock, mark: bytes) -> None:
    forged = mark.join([b"7", b"Nats-Rollup: all", NAME.encode() + b"Reason: forged", b"Nats-Msg-Id: 9"])
    block = b"NATS/1.0\r\nNats-Msg-Id: %b\r\nCustom: 1\r\n\r\n" % forged
    handler = handled(always, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        # Bypasses `publish`, which refuses a block that a server relays.
        w.broker._server.publish(Publish(b"in.x", b"", block, b"payload"), trio.current_time())
        w.broker._network.settle()
        await eventually(lambda: w.route.dead_lettered == 1)
        (letter,) = dead(w)
        assert letter.headers[f"{NAME}Message-Id"] == "7"
        assert letter.headers["Custom"] == "1"
        assert letter.headers[f"{NAME}Reason"] == "handler_error"
        assert not any("forged" in value or "Rollup" in value for _, value in letter.headers.pairs())


async def test_a_message_that_succeeds_at_its_last_attempt_is_not_dead_lettered(autojump_clock: MockClock) -> None:
    tried: Counter[bytes] = Counter()

    def pick(message: Message) -> Message:
        tried[message.payload] += 1
        if tried[message.payload] < 3:
            raise ValueError("not yet")
        return message.replace(subject="out.x")

    handler = handled(pick, to=to("out.x", jetstream=True), retry={"attempts": 3}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 5)
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        await eventually(lambda: unacked(w) == 0)
        assert dead(w) == []
        assert w.route_ledger() == (15, 0, {"routed": 5, "returned": 10})


async def test_nothing_is_terminated_before_its_dead_letter_is_acked(autojump_clock: MockClock) -> None:
    handler = handled(always, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)
    async with world(handlers=[handler], brokers=brokers(), liveness_interval="1m") as w:
        w.broker.trouble.lose("puback", 1)
        fill(w.broker, 1)
        await eventually(lambda: len(dead(w)) == 1)
        await trio.sleep(1)
        assert unacked(w) == 1
        assert w.route_ledger() == (1, 1, {})
        await eventually(lambda: w.route.dead_lettered == 1, 20)
        assert unacked(w) == 0
        assert len(dead(w)) == 1, "the stream deduplicates the second one"


async def test_a_message_whose_dead_letter_can_not_be_stored_stays_in_its_stream_and_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    calls = 0

    def fail(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("never")

    handler = handled(fail, to=to("out.x", jetstream=True), retry={"attempts": 2}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        w.broker.deny_publish("dead.>")
        fill(w.broker, 3)
        await eventually(lambda: w.route.failed["dead_letter"] >= 9, 60)
        assert unacked(w) == 3
        assert w.route.dead_lettered == 0
        events = w.watch.of("ROUTE_DEAD_LETTER_NOT_STORED")
        assert {event.reason for event in events} == {"permission_denied"}
        assert len(events) < 30, "with growing delays"
        w.broker.allow_publish("dead.>")
        await eventually(lambda: w.route.dead_lettered == 3, 120)
        assert [letter.payload for letter in dead(w)] == numbers(3)
        assert {letter.headers[f"{NAME}Attempts"] for letter in dead(w)} == {"2"}
        assert calls == 6, "the handler was not called again"
        assert unacked(w) == 0


@pytest.mark.parametrize("handles", [False, True])
async def test_while_their_connection_is_down_dead_letters_wait_in_the_stream(
    autojump_clock: MockClock, handles: bool
) -> None:
    there = brokers() | {"edge": FakeBroker()}
    there["main"].delete_stream("DEAD")
    there["edge"].add_stream("DEAD", ["dead.>"])
    letter = DEAD | {"connection": "edge"}
    source = FROM | {"connection": "main", "retry": {"attempts": 1}, "dead_letter": letter}
    route = stream(
        "IN",
        to("out.{{split(1,-)}}", jetstream=True),
        **{k: v for k, v in source.items() if k not in ("stream", "durable")},
    )
    handlers = [handled(always, to=to("out.x", jetstream=True), **source)] if handles else []
    async with world([] if handles else [route], handlers=handlers, brokers=there) as w:
        await w.lose("edge")
        for _ in range(3):
            w.broker.publish("in.--", b"x")
        await eventually(lambda: w.route.failed["dead_letter"] >= 9, 60)
        assert w.route.fates["returned"] >= 9
        assert w.entry("edge")["accepted"] == 0
        await w.find("edge")
        await eventually(lambda: w.route.dead_lettered == 3, 120)
        assert len(there["edge"].messages("DEAD")) == 3
        assert w.route.failed["handler_error" if handles else "mapping"] == 3
        assert unacked(w) == 0


async def test_after_a_message_was_given_up_only_its_dead_letter_is_sent_though_its_stream_was_rolled_back(
    autojump_clock: MockClock,
) -> None:
    there = brokers() | {"edge": FakeBroker()}
    there["main"].delete_stream("DEAD")
    there["edge"].add_stream("DEAD", ["dead.>"])
    gate = trio.Event()
    calls: Counter[bytes] = Counter()

    async def work(message: Message) -> Message:
        calls[message.payload] += 1
        if message.payload == b"0":
            raise ValueError("never")
        if message.payload == b"1":
            await gate.wait()
        return message

    letter = DEAD | {"connection": "edge"}
    source = FROM | {"connection": "main", "retry": {"attempts": 1, "initial": "1s"}, "dead_letter": letter}
    async with world(handlers=[handled(work, to=to("out.x", jetstream=True), **source)], brokers=there) as w:
        await w.lose("edge")
        fill(w.broker, 2)
        await eventually(lambda: calls == {b"0": 1, b"1": 1})
        await eventually(lambda: w.route.received == 3)
        w.broker.trouble.restore("IN", 0)
        fill(w.broker, 1, first=2)
        await w.watch.until("STREAM_WENT_BACK")
        await w.find("edge")
        gate.set()
        await eventually(lambda: w.route.dead_lettered == 1)
        await eventually(lambda: w.route.in_hand == 0)
        assert calls == {b"0": 1, b"1": 1, b"2": 1}
        assert [one.payload for one in there["edge"].messages("DEAD")] == [b"0"]
        assert unacked(w) == 0


@pytest.mark.parametrize("letters", [False, True])
async def test_giving_up_a_message_of_a_stream_that_was_rolled_back_terminates_nothing_in_the_next_incarnation(
    letters: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `letters`, a reload has removed the dead letters meanwhile."""
    there = brokers() | {"edge": FakeBroker(), "far": FakeBroker()}
    for broker, name in (("main", "DEAD"), ("main", "OUT")):
        there[broker].delete_stream(name)
    there["edge"].add_stream("DEAD", ["dead.>"])
    there["far"].add_stream("OUT", ["out.>"])
    termed: list[bytes] = []
    monkeypatch.setattr(there["main"]._server, "term", lambda reply, now: termed.append(reply))
    source: dict[str, Any] = {"filter": "in.*", "connection": "main", "retry": {"attempts": 1, "initial": "1s"}}
    destination = to("out.{{split(1,-)}}", "far", jetstream=True)
    route = stream("IN", destination, **source, dead_letter=DEAD | {"connection": "edge"})
    async with world([route], brokers=there) as w:
        await w.lose("edge")
        w.broker.publish("in.--", b"0")
        await eventually(lambda: w.route.failed["dead_letter"] == 1)
        if not letters:
            await w.live.reload(w.configuration(stream("IN", destination, **source)))
        await w.lose("far")
        await eventually(lambda: w.route.in_hand == 1)
        w.broker.trouble.restore("IN", 0)
        w.broker.publish("in.a-b", b"1")
        await w.watch.until("STREAM_WENT_BACK")
        await w.find("edge")
        await w.find("far")
        await eventually(lambda: w.payloads("OUT", "far") == [b"1"])
        await eventually(lambda: unacked(w) == 0 and w.route.in_hand == 0)
        assert termed == []
        assert w.route.fates["dead_lettered" if letters else "given_up"] == 1
        assert len(there["edge"].messages("DEAD")) == letters


@pytest.mark.parametrize("handles", [False, True])
async def test_a_dead_letter_that_can_not_be_stored_does_not_keep_others_out(
    autojump_clock: MockClock, handles: bool
) -> None:
    """This holds however few messages may be in hand."""

    def pick(message: Message) -> Message:
        if message.subject == "in.--":
            raise ValueError("never")
        return message.replace(subject="out.x")

    nowhere = {"subject": "dead.{{split(1,-)}}"}
    source = FROM | {"retry": {"attempts": 1, "max": "1s"}, "max_in_flight": 1, "dead_letter": nowhere}
    route = stream("IN", "out.{{split(1,-)}}", **{key: source[key] for key in source.keys() - {"stream", "durable"}})
    handlers = [handled(pick, to=to("out.x", jetstream=True), **source)] if handles else []
    async with world([] if handles else [route], handlers=handlers, brokers=brokers()) as w:
        w.broker.publish("in.--", b"bad")
        await trio.sleep(10)
        assert {event.reason for event in w.watch.of("ROUTE_DEAD_LETTER_NOT_STORED")} == {"mapping"}
        fill(w.broker, 5)
        await eventually(lambda: w.payloads("OUT") == numbers(5), 60)


async def test_a_connection_lost_between_dead_letter_and_puback_stores_each_letter_once(
    autojump_clock: MockClock,
) -> None:
    handler = handled(always, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        w.broker.trouble.lose("puback", 5)
        fill(w.broker, 5)
        await eventually(lambda: len(dead(w)) == 5)
        w.broker.cut()
        await eventually(lambda: w.route.dead_lettered == 5)
        await eventually(lambda: unacked(w) == 0, 60)
        assert sorted(letter.payload for letter in dead(w)) == numbers(5)


async def test_a_dead_letter_in_flight_at_the_end_is_waited_for(autojump_clock: MockClock) -> None:
    handler = handled(always, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        w.broker.trouble.lose("puback", 1)
        fill(w.broker, 1)
        await eventually(lambda: len(dead(w)) == 1)
    assert w.route.dead_lettered == 1
    assert unacked(w) == 0


async def test_a_message_whose_dead_letter_is_not_confirmed_in_time_is_redelivered(autojump_clock: MockClock) -> None:
    there = brokers()

    def failing() -> Any:
        return handled(always, to=to("out.x", jetstream=True), retry={"attempts": 1}, **FROM)

    async with world(handlers=[failing()], brokers=there, shutdown_timeout=0.5) as w:
        w.broker.trouble.lose("puback", 1)
        fill(w.broker, 1)
        await eventually(lambda: len(dead(w)) == 1)
    assert w.route_ledger() == (1, 0, {"returned": 1})
    async with world(handlers=[failing()], brokers=there) as w:
        await eventually(lambda: w.route.dead_lettered == 1, 60)
        assert len(dead(w)) == 1, "the id is the same in another process"
        assert unacked(w) == 0


# --- order, and limits set by others ---


async def test_messages_behind_a_refused_one_wait_for_its_dead_letter(autojump_clock: MockClock) -> None:
    there = brokers()
    there["main"].deny_publish("out.a")
    there["main"].deny_publish("dead.a")
    retry = {"not": ["permission_denied"]}
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", retry=retry, dead_letter=DEAD)
    async with world([route], brokers=there) as w:
        fill(w.broker, 1, subjects="ab")
        await eventually(lambda: w.route.failed["dead_letter"] >= 3, 60)
        fill(w.broker, 2, first=1, subjects="ab")
        w.broker.allow_publish("out.a")
        await trio.sleep(600)
        assert [one.subject for one in w.broker.messages("OUT")] == ["out.b"] * 3
        w.broker.allow_publish("dead.a")
        await eventually(lambda: len(w.payloads("OUT")) == 5, 120)
        assert [one.payload for one in w.broker.messages("OUT") if one.subject == "out.a"] == [b"1", b"2"]
        assert [letter.payload for letter in dead(w)] == [b"0"]
        await eventually(lambda: unacked(w) == 0)


async def test_a_message_whose_own_dead_letter_is_not_stored_holds_back_no_others(
    autojump_clock: MockClock,
) -> None:
    """It was refused by its destination, so others waited for it until it was given up."""
    there = brokers()
    there["main"].deny_publish("out.--")
    nowhere = {"subject": "dead.{{split(1,-)}}"}
    route = stream(
        "IN", "out.{{wildcard(1)}}", filter="in.*", retry={"not": ["permission_denied"]}, dead_letter=nowhere
    )
    async with world([route], brokers=there) as w:
        w.broker.publish("in.--", b"0")
        await eventually(lambda: w.route.failed["dead_letter"] >= 1, 60)
        w.broker.allow_publish("out.--")
        w.broker.publish("in.--", b"1")
        await eventually(lambda: w.payloads("OUT") == [b"1"], 60)


async def test_a_message_that_its_server_will_not_redeliver_is_dead_lettered(autojump_clock: MockClock) -> None:
    there = brokers()
    there["main"].trouble.add_consumer(
        ConsumerSpec("IN", "router", ("in.*",), ack_wait=5.0, max_deliver=2, max_ack_pending=1000)
    )
    there["main"].trouble.fix_consumer("IN", "router")
    handler = handled(always, to=to("out.x", jetstream=True), retry={"initial": "10ms"}, **FROM)
    async with world(handlers=[handler], brokers=there) as w:
        fill(w.broker, 2)
        await eventually(lambda: w.route.dead_lettered == 2)
        assert [letter.headers[f"{NAME}Attempts"] for letter in dead(w)] == ["2", "2"]
        w.broker.deny_publish("dead.>")
        fill(w.broker, 1, first=2)
        await eventually(lambda: w.route.fates["given_up"] == 1)
        assert w.watch.count("ROUTE_MESSAGE_GIVEN_UP") == 1


async def test_dead_letters_that_can_not_be_stored_are_reported_before_there_is_one(autojump_clock: MockClock) -> None:
    there = brokers()
    there["main"].delete_stream("DEAD")
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", dead_letter=DEAD)
    async with world([route], brokers=there) as w:
        (event,) = w.watch.of("NATS_DESTINATION_NOT_STORED")
        assert event.subject == "dead.{{wildcard(1)}}"
        assert w.route.trouble is not None
        w.broker.add_stream("DEAD", ["dead.>"])
        await eventually(lambda: w.route.trouble is None, 20)
        fill(w.broker, 1)
        await eventually(lambda: w.payloads("OUT") == [b"0"])


async def test_dead_letters_may_be_sent_to_a_core_subject(autojump_clock: MockClock) -> None:
    letter = {"subject": "trash", "jetstream": False}
    handler = handled(always, to=to("out.x"), retry={"attempts": 1}, **FROM | {"dead_letter": letter})
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.dead_lettered == 1)
        assert w.subjects() == ["trash"]
        assert unacked(w) == 0
