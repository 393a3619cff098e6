"""A destination that refuses every message: the route waits as for a lost connection, and gives up none for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message
from tests.integration.readiness import Place, deny, place
from tests.support.eventually import eventually
from tests.support.settings import core_route, stream_route

COUNT = 200
IN_FLIGHT = 50

IN_ORDER = [[*range(key, COUNT, 10)] for key in range(10)]
"""The numbers of the messages of each subject."""

REFUSED_FOR = 4.0
"""Seconds: far longer than five attempts take with these delays."""

ROUNDS = 3
"""Times that all messages are sent while the destination refuses: in each, one of them tries it."""

QUICK: dict[str, Any] = {
    "retry": {"initial": "20ms", "max": "200ms", "attempts": 5},
    "dead_letter": {"subject": "dead.{{wildcard(1)}}"},
}

Act = Callable[[Place], Awaitable[Any]]


async def fill_up(at: Place) -> None:
    await at.streams.edit_stream("OUT", discard="new", max_msgs=1)
    await at.streams.publish("out.first", b"first")


async def fill_up_by_bytes(at: Place) -> None:
    await at.streams.edit_stream("OUT", discard="new", max_bytes=200)
    await at.streams.publish("out.first", b"x" * 100)


FAULTS: dict[str, tuple[Act, Act]] = {
    "publishing is denied": (deny("out.>"), deny()),
    "the stream is full": (fill_up, lambda at: at.streams.edit_stream("OUT", max_msgs=-1)),
    "the stream has no bytes left": (fill_up_by_bytes, lambda at: at.streams.edit_stream("OUT", max_bytes=-1)),
    "the stream is missing": (
        lambda at: at.streams.delete_stream("OUT"),
        lambda at: at.streams.create_stream("OUT", ["out.*"]),
    ),
}


async def send(at: Place, first: int = 0) -> None:
    for number in range(first, COUNT):
        await at.client.publish(f"in.{number % 10}", b"%d" % number)


async def by_subject(at: Place) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for message in await at.streams.stream_messages("OUT"):
        if message.payload.isdigit():
            found[message.subject].append(int(message.payload))
    return dict(found)


async def stored(at: Place) -> int:
    return sum(map(len, (await by_subject(at)).values()))


async def given_up(at: Place) -> int:
    route = at.live.routes[0]
    return route.dead_lettered + sum(route.given_up.values()) + len(await at.streams.stream_messages("DEAD"))


def _routed(at: Place, count: int) -> bool:
    return at.live.routes[0].fates["routed"] == count


async def create_dead(streams: Any) -> None:
    await streams.create_stream("DEAD", ["dead.>"])


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("target", ["out.{{wildcard(1)}}", "out.all"])
async def test_no_message_of_a_stream_is_given_up_for_a_destination_that_refuses_all(
    target: str, how: str, tmp_path: Path
) -> None:
    refuse, accept = FAULTS[how]
    route = stream_route("IN", target, filter="in.*", max_in_flight=IN_FLIGHT) | QUICK
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await refuse(at)
        await send(at)
        await at.until_unready("destination")
        await trio.sleep(REFUSED_FOR)
        assert await given_up(at) == 0
        status, reasons = await at.readyz()
        assert status == 503
        if target == "out.all" or how != "publishing is denied":
            # A permission may be missing for some subjects only: then the route goes on, and may report what waits.
            assert len(reasons) == 1, reasons
        assert at.live.routes[0].in_hand <= 2 * IN_FLIGHT, "as many again may wait behind refused messages"
        await accept(at)
        await eventually(lambda: at.live.routes[0].fates["routed"] == COUNT, 30, lambda: at.live.routes[0].fates)
        await at.until_ready()
        assert await given_up(at) == 0
        numbers = [number for found in (await by_subject(at)).values() for number in found]
        assert [[one for one in numbers if one % 10 == key] for key in range(10)] == IN_ORDER


async def test_a_destination_that_refuses_all_is_tried_with_one_message_after_growing_pauses(tmp_path: Path) -> None:
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=50) | QUICK
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await fill_up(at)
        await send(at)
        await at.until_unready("limit")
        await eventually(lambda: "one message is tried every" in (at.live.routes[0].reason or ""))
        outbox = at.live.connections["main"].outbox
        counters = outbox.counters
        await eventually(lambda: not outbox.pending + outbox.in_flight)  # what was sent before it was known
        before = sum(counters.failed.values())
        await trio.sleep(REFUSED_FOR)
        assert 1 <= sum(counters.failed.values()) - before <= 4
        assert (await at.streams.consumer_info("IN", "router"))["num_redelivered"] <= 1


@pytest.mark.parametrize("how", ["publishing is denied", "the stream is full", "the stream is missing"])
async def test_no_message_of_a_subject_is_given_up_for_a_destination_that_refuses_all(how: str, tmp_path: Path) -> None:
    refuse, accept = FAULTS[how]
    route: dict[str, Any] = core_route("in.*", "out.all") | QUICK
    route["to"][0]["jetstream"] = True
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await refuse(at)
        await send(at)
        await at.until_unready("destination")
        await trio.sleep(REFUSED_FOR)
        assert await given_up(at) == 0
        await accept(at)
        await eventually(lambda: at.live.routes[0].fates["routed"] == COUNT, 40, lambda: at.live.routes[0].fates)
        assert await given_up(at) == 0
        assert await by_subject(at) == {"out.all": [*range(COUNT)]}


async def test_a_subject_that_is_denied_for_long_holds_up_no_others(tmp_path: Path) -> None:
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=50) | QUICK
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await deny("out.3", "out.7")(at)
        await send(at)
        await eventually(lambda: at.live.routes[0].fates["routed"] == COUNT * 8 // 10, 20)
        await trio.sleep(REFUSED_FOR)
        assert await given_up(at) == 0
        await deny()(at)
        await eventually(lambda: at.live.routes[0].fates["routed"] == COUNT, 30)
        assert await by_subject(at) == {f"out.{key}": [*range(key, COUNT, 10)] for key in range(10)}


async def test_a_stream_that_is_full_for_one_subject_takes_the_others(tmp_path: Path) -> None:
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=50) | QUICK
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await at.streams.publish("out.3", b"first")
        for key in (key for key in range(10) if key != 3):
            await at.client.publish(f"in.{key}", b"%d" % key)
        await eventually(lambda: at.live.routes[0].fates["routed"] == 9)
        await at.streams.edit_stream("OUT", discard="new", max_msgs_per_subject=1, discard_new_per_subject=True)
        for number in range(COUNT):
            await at.client.publish("in.3" if number < 20 else f"in.new{number}", b"%d" % number)
        await eventually(lambda: at.live.routes[0].fates["routed"] == 9 + COUNT - 20, 20)
        await trio.sleep(REFUSED_FOR)
        assert await given_up(at) == 0
        assert at.live.routes[0].failed["subject_limit"] > 0
        await at.streams.edit_stream("OUT", max_msgs_per_subject=-1, discard_new_per_subject=False)
        await eventually(lambda: at.live.routes[0].fates["routed"] == 9 + COUNT, 30)
        assert (await by_subject(at))["out.3"] == [*range(20)]


async def test_a_message_that_fails_by_its_own_fault_is_given_up_while_others_wait(tmp_path: Path) -> None:
    def picky(message: Message) -> Message:
        if message.payload == b"bad":
            raise ValueError("bad")
        return message

    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*") | QUICK
    async with place(tmp_path, route, handler=picky, before=create_dead) as at:
        await at.until_ready()
        await deny("out.3")(at)
        await send(at)
        await at.client.publish("in.5", b"bad")
        await eventually(lambda: at.live.routes[0].dead_lettered == 1, 20)
        await deny()(at)
        await eventually(lambda: at.live.routes[0].fates["routed"] == COUNT, 30)
        assert dict(at.live.routes[0].given_up) == {"handler_error": 1}


async def test_a_reason_in_not_still_ends_the_attempts(tmp_path: Path) -> None:
    route = stream_route("IN", "out.all", filter="in.*") | QUICK
    route["retry"] = QUICK["retry"] | {"not": ["permission_denied"]}
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await deny("out.>")(at)
        for number in range(5):
            await at.client.publish("in.x", b"%d" % number)
        await eventually(lambda: at.live.routes[0].dead_lettered == 5, 20)


@pytest.mark.parametrize("handler", [None, lambda message: message], ids=["as it is", "by a handler"])
async def test_messages_that_no_stream_takes_are_given_up_unpublished_if_not_names_it(
    handler: Callable[[Message], Message] | None, tmp_path: Path
) -> None:
    route = stream_route("IN", "heard.{{wildcard(1)}}", filter="in.*") | QUICK
    route["retry"] = QUICK["retry"] | {"not": ["no_responders"]}
    async with place(tmp_path, route, handler=handler, before=create_dead) as at:
        await at.until_unready("no_stream")
        for number in range(5):
            await at.client.publish("in.x", b"%d" % number)
        await eventually(lambda: at.live.routes[0].dead_lettered == 5, 20)
        assert at.heard == []
        assert dict(at.live.routes[0].given_up) == {"no_responders": 5}
        await at.streams.create_stream("HEARD", ["heard.>"])
        await at.until_ready()
        await at.client.publish("in.x", b"5")
        await eventually(lambda: at.live.routes[0].fates["routed"] == 1)
        assert len(await at.streams.stream_messages("DEAD")) == 5


async def test_messages_that_were_sent_to_a_stream_that_is_gone_are_given_up_if_not_names_it(tmp_path: Path) -> None:
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*") | QUICK
    route["retry"] = QUICK["retry"] | {"not": ["no_responders"]}
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_ready()
        await at.streams.delete_stream("OUT")
        await send(at)
        await eventually(lambda: at.live.routes[0].dead_lettered == COUNT, 30)
        assert len(await at.streams.stream_messages("DEAD")) == COUNT


async def test_nothing_is_published_while_no_stream_takes_the_subject(tmp_path: Path) -> None:
    """Somebody who subscribes there would get a copy at each attempt."""
    route = stream_route("IN", "heard.{{wildcard(1)}}", filter="in.*") | QUICK
    async with place(tmp_path, route, before=create_dead) as at:
        await at.until_unready("jetstream = false")
        [reason] = [one["reason"] for one in (await at.readyz())[1] if "no_stream" in one["reason"]]
        assert "create one for it" in reason
        for number in range(5):
            await at.client.publish("in.x", b"%d" % number)
        await eventually(lambda: at.live.routes[0].in_hand == 5)
        await trio.sleep(REFUSED_FOR + 4)  # longer than a publish without a PubAck waits until it is sent again
        assert at.heard == []
        assert await given_up(at) == 0
        await at.streams.create_stream("HEARD", ["heard.>"])
        await eventually(lambda: at.live.routes[0].fates["routed"] == 5, 20)
        await eventually(lambda: len(at.heard) == 5)
        assert at.heard == [b"%d" % number for number in range(5)]


async def test_a_stream_that_is_deleted_leaves_one_copy_to_subscribers_at_most(tmp_path: Path) -> None:
    route = stream_route("IN", "heard.{{wildcard(1)}}", filter="in.*") | QUICK

    async def create(streams: Any) -> None:
        await create_dead(streams)
        await streams.create_stream("HEARD", ["heard.>"])

    async with place(tmp_path, route, before=create) as at:
        await at.until_ready()
        await at.streams.delete_stream("HEARD")
        for number in range(5):
            await at.client.publish("in.x", b"%d" % number)
        await at.until_unready("jetstream = false")
        await trio.sleep(REFUSED_FOR + 4)
        copies = len(at.heard)
        assert copies <= 5
        await trio.sleep(REFUSED_FOR)
        assert len(at.heard) == copies
        await at.streams.create_stream("HEARD", ["heard.>"])
        await eventually(lambda: at.live.routes[0].fates["routed"] == 5, 30)
        assert await given_up(at) == 0


@pytest.mark.parametrize("how", ["publishing is denied", "the stream is full"])
async def test_a_fallback_gets_what_was_refused_before_later_messages(how: str, tmp_path: Path) -> None:
    """Also those that were sent together with the first refused one, and those that tried the destination later."""
    refuse, accept = FAULTS[how]
    route = stream_route("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=50) | QUICK
    route |= {"strategy": "fallback", "to": [*route["to"], {"subject": "spare.{{wildcard(1)}}", "jetstream": True}]}

    async def create(streams: Any) -> None:
        await create_dead(streams)
        await streams.create_stream("SPARE", ["spare.*"])

    async with place(tmp_path, route, before=create) as at:
        await at.until_ready()
        await refuse(at)
        for times in range(1, ROUNDS + 1):
            await send(at)
            await eventually(partial(_routed, at, times * COUNT), 20)
            await trio.sleep(1.0)  # longer than the pause before the next one tries the destination
        await accept(at)
        with trio.fail_after(30):
            while not await stored(at):
                await at.client.publish("in.1", b"1")
                await trio.sleep(0.1)
        await at.until_ready()
        spare: defaultdict[str, list[int]] = defaultdict(list)
        for message in await at.streams.stream_messages("SPARE"):
            spare[message.subject].append(int(message.payload))
        for key in (key for key in range(10) if key != 1):
            assert spare[f"spare.{key}"] == IN_ORDER[key] * ROUNDS
        assert await given_up(at) == 0
