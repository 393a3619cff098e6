"""Promises of `router_trio.link` about where a durable starts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import ConsumerSpec, Link
from router_trio.protocol import ack_reply
from tests.contract.orders import SPEC, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder


async def pulled(link: Link, spec: ConsumerSpec, count: int) -> list[int]:
    """Return the sequences of the first messages that a consumer delivers."""
    received = Recorder()
    consumer = await link.open_consumer(spec, received)
    consumer.pull(count, 5.0)
    return sequences(await received.until_delivered(count))


async def test_a_durable_starts_with_all_messages_or_with_new_ones(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(3):
        await peer.publish(f"orders.{number}")
    async with link_of(peer) as link:
        new = replace(SPEC, durable="new", deliver="new")
        consumer = await link.open_consumer(new, Recorder())
        assert (consumer.limits.deliver, consumer.progress.passed) == ("new", 3)
        await peer.publish("orders.3")
        assert await pulled(link, new, 1) == [4]
        assert await pulled(link, replace(SPEC, durable="all"), 4) == [1, 2, 3, 4]


async def test_a_durable_starts_with_the_messages_stored_since_a_time(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(3):
        await peer.publish(f"orders.{number}")
        await trio.sleep(0.02)  # each gets its own time
    async with link_of(peer) as link:
        received = Recorder()
        (await link.open_consumer(SPEC, received)).pull(3, 5.0)
        raws = await received.until_delivered(3)
        second = int(ack_reply.tokens(raws[1][1])[ack_reply.TIME]) / 1e9 - 0.01
        start = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S.%f}".rstrip("0") + "Z"
        spec = replace(SPEC, durable="later", deliver=start)
        consumer = await link.open_consumer(spec, Recorder())
        assert consumer.limits.deliver == start
        # A durable that replaces it before any message was settled starts there as well.
        await peer.delete_consumer("ORDERS", "later")
        first = consumer.progress.passed + 1
        again = replace(spec, stream_created=consumer.stream_created, start_sequence=first)
        assert await pulled(link, again, 2) == [2, 3]


async def test_a_durable_starts_at_a_sequence(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(4):
        await peer.publish(f"orders.{number}")
    async with link_of(peer) as link:
        spec = replace(SPEC, durable="third", deliver=3)
        consumer = await link.open_consumer(spec, Recorder())
        assert (consumer.limits.deliver, consumer.progress.passed) == ("", 2)
        # A durable that replaces it before any message was settled starts there as well.
        await peer.delete_consumer("ORDERS", "third")
        again = replace(spec, stream_created=consumer.stream_created, start_sequence=consumer.progress.passed + 1)
        assert await pulled(link, again, 2) == [3, 4]
        # Of a stream that was created again, every message is new.
        elsewhere = replace(spec, durable="all", stream_created="2001-01-01T00:00:00Z", start_sequence=3)
        assert await pulled(link, elsewhere, 4) == [1, 2, 3, 4]


async def test_a_durable_that_would_skip_messages_which_are_not_stored_yet_is_refused(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.0")
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match=r"at sequence 3 .*, and the last one of stream 'ORDERS' is 1") as refused:
            await link.open_consumer(replace(SPEC, deliver=3), Recorder())
        assert refused.value.reason == reasons.CONSUMER_REFUSED
        spec = replace(SPEC, deliver=2)
        assert (await link.open_consumer(spec, Recorder())).progress.passed == 1
        await peer.publish("orders.1")
        assert await pulled(link, spec, 1) == [2]


async def test_an_existing_durable_continues_and_reports_where_it_started(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.0")
    async with link_of(peer) as link:
        assert (await link.open_consumer(SPEC, Recorder())).limits.deliver == "all"
        await peer.publish("orders.1")
        changed = replace(SPEC, deliver="new")
        assert (await link.open_consumer(changed, Recorder())).limits.deliver == "all"
        assert await pulled(link, changed, 2) == [1, 2]


async def test_a_durable_that_replaces_another_starts_at_the_given_sequence(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for number in range(3):
        await peer.publish(f"orders.{number}")
    async with link_of(peer) as link:
        spec = replace(SPEC, deliver="new")
        created = (await link.open_consumer(spec, Recorder())).stream_created
        await peer.delete_consumer("ORDERS", "router")
        resumed = replace(spec, stream_created=created, start_sequence=2)
        consumer = await link.open_consumer(resumed, Recorder())
        assert (consumer.limits.deliver, consumer.progress.passed) == ("", 1)
        assert await pulled(link, resumed, 2) == [2, 3]


async def test_all_messages_of_a_recreated_stream_count_as_new(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.0")
    async with link_of(peer) as link:
        known = replace(SPEC, deliver="new", stream_created="2001-01-01T00:00:00Z", start_sequence=9)
        consumer = await link.open_consumer(known, Recorder())
        assert consumer.went_back is not None
        assert consumer.limits.deliver == ""
        assert await pulled(link, known, 1) == [1]
