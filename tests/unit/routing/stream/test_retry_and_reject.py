"""Answers of handlers that retry a message from a stream after a time, or reject it for good. On a fake broker."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Reject, Retry
from tests.support.eventually import eventually
from tests.support.world import fill, handled, to, unacked, world
from tests.unit.routing.stream.giving_up import FROM, NAME, brokers, dead


async def test_a_message_is_redelivered_after_the_time_that_its_handler_asks_for(autojump_clock: MockClock) -> None:
    times: list[float] = []

    def wait(message: Message) -> Message:
        times.append(trio.current_time())
        if len(times) < 4:
            raise Retry(after=len(times) * 10)
        return message.replace(subject="out.x")

    handler = handled(wait, to=to("out.x", jetstream=True), retry={"initial": "10ms", "max": "10ms"}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.payloads("OUT") == [b"0"], 100)
        assert [round(later - earlier, 1) for earlier, later in pairwise(times)] == [10.0, 20.0, 30.0]
        assert dict(w.route.failed) == {"retry": 3}


async def test_a_retry_requested_by_a_handler_counts_as_an_attempt(autojump_clock: MockClock) -> None:
    def wait(message: Message) -> Message:
        raise Retry(2.5, "the other side is closed")

    handler = handled(wait, to=to("out.x", jetstream=True), retry={"attempts": 3}, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.dead_lettered == 1)
        (letter,) = dead(w)
        assert letter.headers[f"{NAME}Reason"] == "retry"
        assert letter.headers[f"{NAME}Detail"] == "the other side is closed"
        assert letter.headers[f"{NAME}Attempts"] == "3"


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_handler_rejects_a_message_for_good(autojump_clock: MockClock, grouped: bool) -> None:
    async def reject(message: Message) -> Message:
        if message.payload != b"1":
            return message.replace(subject="out.x")
        if grouped:
            async with trio.open_nursery():
                raise Reject("an order without lines: \n\x00" + "x" * 1000)
        raise Reject("an order without lines: \n\x00" + "x" * 1000)

    handler = handled(reject, to=to("out.x", jetstream=True), **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.dead_lettered == 1)
        await eventually(lambda: unacked(w) == 0)
        (letter,) = dead(w)
        assert letter.headers[f"{NAME}Reason"] == "rejected"
        assert letter.headers[f"{NAME}Detail"].startswith("an order without lines: \\n\\x00xxx")
        assert len(letter.headers[f"{NAME}Detail"]) <= 500
        assert letter.headers[f"{NAME}Attempts"] == "1"
        assert w.payloads("OUT") == [b"0", b"2"]
        assert dict(w.route.failed) == {"rejected": 1}


async def test_without_dead_letters_a_rejected_message_is_given_up(autojump_clock: MockClock) -> None:
    def reject(message: Message) -> Message:
        raise Reject

    source = {key: value for key, value in FROM.items() if key != "dead_letter"}
    async with world(handlers=[handled(reject, to=to("out.x"), **source)], brokers=brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route_ledger() == (1, 0, {"given_up": 1}))
        assert unacked(w) == 0
        assert w.watch.count("ROUTE_MESSAGE_GIVEN_UP") == 1


async def test_a_message_that_fails_for_an_excluded_reason_is_not_retried(autojump_clock: MockClock) -> None:
    calls: Counter[bytes] = Counter()

    def fail(message: Message) -> None:
        calls[message.payload] += 1
        if message.payload == b"0":
            raise UnicodeError("a ValueError as well")
        raise KeyError("not this one")

    retry = {"attempts": 3, "not": ["handler_error:ValueError", "mapping"]}
    handler = handled(fail, to=to("out.x", jetstream=True), retry=retry, **FROM)
    async with world(handlers=[handler], brokers=brokers()) as w:
        fill(w.broker, 2)
        await eventually(lambda: w.route.dead_lettered == 2)
        assert calls == {b"0": 1, b"1": 3}
