"""The order of each subject at a fallback, whose messages may be refused elsewhere first."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, all_acked, fill, numbers, stream, to, two_brokers, world
from tests.unit.routing.stream.refusing import arrived

SUBJECTS = "xyz"
AWAY = 0.4
"""Seconds to the first destination, one way: many messages are sent there before the first answer is back."""


def falling_back(**mirror: Any) -> dict[str, Any]:
    """Return a route to `OUT` on another connection, and to `SPARE` while that refuses."""
    first = to("out.{{wildcard(1)}}", "edge", jetstream=True)
    ends = [first, to("spare.{{wildcard(1)}}", jetstream=True)]
    if mirror:
        ends.append(to("seen.{{wildcard(1)}}") | mirror)
    return stream("IN", *ends, connection="main", filter="in.*") | {"strategy": "fallback"}


def servers() -> dict[str, FakeBroker]:
    brokers = two_brokers()
    brokers["main"].add_stream("SPARE", ["spare.*"])
    brokers["edge"].trouble.travel(lambda: AWAY)
    return brokers


async def trickle(w: World, count: int, *, first: int = 0, every: float = 0.03) -> None:
    for number in range(first, first + count):
        fill(w.broker, 1, first=number, subjects=SUBJECTS)
        await trio.sleep(every)


def spare(w: World, subject: str) -> list[bytes]:
    return [one.payload for one in w.broker.messages("SPARE") if one.subject == f"spare.{subject}"]


@pytest.mark.parametrize("how", ["denied", "full", "sealed", "missing"])
@pytest.mark.parametrize("mirror", [{}, {"mirror": 0.5}], ids=["plain", "mirrored"])
async def test_refused_messages_reach_the_fallback_before_later_ones(
    mirror: dict[str, Any], how: str, autojump_clock: MockClock
) -> None:
    """Messages that were sent together with the first refused one, or tried the destination later, come first."""
    async with world([falling_back(**mirror)], brokers=servers()) as w:
        edge = w.brokers["edge"]
        if how == "denied":
            edge.deny_publish("out.>")
        elif how == "full":
            edge.trouble.limit("OUT", 0)
        elif how == "missing":
            edge.delete_stream("OUT")
        else:
            edge.trouble.seal("OUT")
        await trickle(w, 300)
        began = trio.current_time()
        await all_acked(w, 300 * len(SUBJECTS))
        assert trio.current_time() - began < 3.0, "none waits for long"
        for subject in SUBJECTS:
            assert spare(w, subject) == numbers(300)
        if mirror:
            assert sum(one.subject.startswith("seen.") for one in w.broker.published) == 150 * len(SUBJECTS)


async def test_a_destination_known_to_refuse_by_a_lookup_is_waited_for(autojump_clock: MockClock) -> None:
    """Messages that it has not answered yet are not passed at the fallback."""
    async with world([falling_back()], brokers=servers()) as w:
        edge = w.brokers["edge"]
        await trickle(w, 100)
        edge.trouble.limit("OUT", 0)
        await trickle(w, 300, first=100)
        await all_acked(w, 400 * len(SUBJECTS))
        for subject in SUBJECTS:
            taken, fell_back = arrived(w, subject, "edge"), spare(w, subject)
            assert taken == sorted(taken, key=int)
            assert fell_back == sorted(fell_back, key=int)
            assert sorted({*taken, *fell_back}, key=int) == numbers(400)


async def test_messages_pass_those_that_wait_for_a_lost_link(autojump_clock: MockClock) -> None:
    async with world([falling_back()], brokers=servers()) as w:
        edge = w.brokers["edge"]
        edge.deny_publish("out.x")
        fill(w.broker, 1)
        await trio.sleep(1.9 * AWAY)
        fill(w.broker, 1, subjects="y")  # is under way when the first answer is back
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        edge.blackhole()
        fill(w.broker, 5, first=1, subjects="y")
        await trio.sleep(0.1)
        assert spare(w, "y") == [], "they wait for the answer"
        await w.lose("edge")
        await eventually(lambda: spare(w, "y") == numbers(5, first=1), within=0.1)


async def test_a_probe_without_an_answer_holds_up_no_message(autojump_clock: MockClock) -> None:
    brokers = servers()
    async with world([falling_back()], brokers=brokers) as w:
        brokers["edge"].trouble.lose("puback", 1_000_000)
        fill(w.broker, 1)
        await eventually(lambda: spare(w, "x"), within=100)
        for number in range(1, 120):
            fill(w.broker, 1, first=number)
            await trio.sleep(1.0)
            waits = w.route.in_hand or 0
            assert waits <= 2, "no more than the probe and the message that was just published"


async def test_a_destination_that_refused_one_of_its_subjects_is_tried_again(autojump_clock: MockClock) -> None:
    async with world([falling_back()], brokers=servers()) as w:
        edge = w.brokers["edge"]
        edge.deny_publish("out.>")
        await trickle(w, 20)
        await all_acked(w, 20 * len(SUBJECTS))
        edge.allow_publish("out.>")
        await trickle(w, 100, first=20, every=0.3)
        await all_acked(w, 120 * len(SUBJECTS))
        assert {*numbers(50, first=70)} <= {*arrived(w, "x", "edge")}
