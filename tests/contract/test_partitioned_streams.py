"""Promises of `router_trio.link` about streams that have the partitions of a route."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import ConsumerSpec, Link, PartitionedSpec, PartitionedStream
from router_trio.protocol.copies import copied_from
from router_trio.protocol.framing import RawMessage, header_block
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.partitions import Partitioning
from tests.contract.orders import sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder

PARTITIONING = Partitioning(4, (1,), ("orders.*.*",))
WANTED = PartitionedSpec("ORDERS", "ORDERS-router", PARTITIONING)
STARTS = ("all", "new", 3)


async def publish(peer: Peer, *numbers: int) -> None:
    for number in numbers:
        await peer.publish(f"orders.{number % 5}.new", b"%d" % number)
        await peer.publish(f"others.{number}", b"not of the route")


def deliveries(recorder: Recorder) -> list[RawMessage]:
    return [raw for raw in recorder.messages if raw[1]]


async def received(link: Link, stream: str, partitioning: Partitioning, count: int) -> list[RawMessage]:
    """Return what the consumers of all partitions deliver, in the order of the stream."""
    found: list[RawMessage] = []
    recorders: list[tuple[int, Recorder]] = []
    for number in range(partitioning.count):
        spec = ConsumerSpec(stream, f"router-{number}", partitioning.filters(number), 5.0, -1, 1000)
        recorders.append((number, recorder := Recorder()))
        (await link.open_consumer(spec, recorder)).pull(100, 30.0)
    with trio.fail_after(10):
        while len(found) < count:
            await trio.sleep(0.02)
            found = [raw for _, recorder in recorders for raw in deliveries(recorder)]
    for number, recorder in recorders:
        assert all(raw[0].startswith(b"%d." % number) for raw in deliveries(recorder))
    return sorted(found, key=lambda raw: sequences([raw])[0])


async def test_a_stream_that_copies_another_has_its_partitions_in_order(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "others.>"])
    await publish(peer, *range(10))
    async with link_of(peer) as link:
        made = await link.ensure_partitioned(WANTED)
        assert replace(made, lag=0, sourced=0, sourced_at=0, known=None) == PartitionedStream(
            "ORDERS-router", "ORDERS", replicas=1, storage="file", created=True
        )
        await publish(peer, *range(10, 20))
        raws = await received(link, "ORDERS-router", PARTITIONING, 20)
        assert [int(raw[4].splitlines()[-1]) for raw in raws] == list(range(20))
        for raw in raws:
            token, _, subject = raw[0].decode().partition(".")
            assert int(token) == PARTITIONING.partition_of(subject)
        again = await link.ensure_partitioned(WANTED)
        assert not again.created
        assert (again.lag, again.sourced) == (0, 39)
        assert again.sourced_at > 0


async def until_copied(link: Link, wanted: PartitionedSpec, sequence: int) -> PartitionedStream:
    """Look until everything up to a sequence is copied, with what the look before has shown; return the last look."""
    with trio.fail_after(20):
        while (found := await link.ensure_partitioned(wanted)).sourced < sequence or found.lag:
            wanted = replace(wanted, known=found.known)
            await trio.sleep(0.2)
    return found


def numbers_of(raws: list[RawMessage]) -> list[int]:
    return [int(raw[4].splitlines()[-1]) for raw in raws]


async def test_a_copy_that_has_lost_its_last_messages_is_filled_again(peer: Peer, clock: trio.abc.Clock | None) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "others.>"])
    await publish(peer, 0, 1, 2)
    async with link_of(peer) as link:
        await link.ensure_partitioned(WANTED)
        await until_copied(link, WANTED, 5)
    await peer.save("ORDERS-router")
    await publish(peer, 3, 4)
    async with link_of(peer) as link:
        await until_copied(link, WANTED, 9)
    await peer.roll_back("ORDERS-router")
    await publish(peer, 5)
    async with link_of(peer) as link:
        found = await until_copied(link, WANTED, 11)
        raws = await received(link, "ORDERS-router", PARTITIONING, 6)
    assert (found.went_back, found.reused) == ("", ())
    assert numbers_of(raws) == [0, 1, 2, 3, 4, 5]
    assert [copied_from(header_block(raw)) for raw in raws] == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("new", [0, 1, 2, 4], ids=lambda new: f"{new} new messages before it is noticed")
async def test_a_copied_stream_that_has_lost_its_last_messages_is_copied_again_from_the_first_new_one(
    peer: Peer, clock: trio.abc.Clock | None, new: int
) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    orders = [f"orders.{number}.new" for number in range(20)]
    for number in range(5):
        await peer.publish(orders[number], b"%d" % number)
    async with link_of(peer) as link:
        await link.ensure_partitioned(WANTED)
        await until_copied(link, WANTED, 5)
    await peer.save("ORDERS")
    for number in (5, 6):
        await peer.publish(orders[number], b"%d" % number)
    async with link_of(peer) as link:
        await until_copied(link, WANTED, 7)
        known = (await link.ensure_partitioned(WANTED)).known
    await peer.roll_back("ORDERS")
    await trio.sleep(0.01)
    for number in range(10, 10 + new):
        await peer.publish(orders[number], b"%d" % number)
    async with link_of(peer) as link:
        found = await link.ensure_partitioned(replace(WANTED, known=known))
        assert found.went_back
        assert found.is_announced
        assert found.reused == (7,)
        for number in (14, 15, 16):
            await peer.publish(orders[number], b"%d" % number)
        stored = [*range(10, 10 + new), 14, 15, 16]
        passed = stored[2:]  # were copied as those behind message 7, before they were copied again with the others
        await until_copied(link, WANTED, 5 + len(stored))
        with trio.fail_after(20):
            while (found := await link.ensure_partitioned(WANTED)).is_announced or found.lag:
                await trio.sleep(0.2)
        assert (found.went_back, found.reused) == ("", (7,))
        raws = await received(link, "ORDERS-router", PARTITIONING, 7 + len(passed) + len(stored))
    assert numbers_of(raws) == [*range(7), *passed, *stored]


@pytest.mark.parametrize("deliver", STARTS)
async def test_a_copy_begins_where_the_route_does(peer: Peer, clock: trio.abc.Clock | None, deliver: str | int) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "others.>"])
    await publish(peer, 0, 1, 2)
    async with link_of(peer) as link:
        await link.ensure_partitioned(replace(WANTED, deliver=deliver))
        await publish(peer, 3)
        expected = {"all": [0, 1, 2, 3], "new": [3], 3: [1, 2, 3]}[deliver]
        raws = await received(link, "ORDERS-router", PARTITIONING, len(expected))
        assert [int(raw[4].splitlines()[-1]) for raw in raws] == expected


async def test_several_links_that_create_the_copy_at_once_get_the_same(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    made: list[PartitionedStream] = []

    async def ensure() -> None:
        async with link_of(peer) as link:
            made.append(await link.ensure_partitioned(WANTED))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ensure)
    assert [one.name for one in made] == ["ORDERS-router"] * 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Partitioning(8, (1,), ("orders.*.*",)), "it has 4 partitions, the route 8 partitions"),
        (Partitioning(4, (2,), ("orders.*.*",)), "wildcard 2"),
        (Partitioning(4, (1,), ("orders.*.new",)), "orders.*.new"),
    ],
)
async def test_a_copy_with_other_partitions_is_refused(peer: Peer, other: Partitioning, words: str) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        await link.ensure_partitioned(WANTED)
        with pytest.raises(SourceError, match="other partitions") as caught:
            await link.ensure_partitioned(replace(WANTED, partitioning=other))
        assert caught.value.reason == "partitions_differ"
        assert words in str(caught.value)


async def test_a_stream_that_has_the_partitions_itself_is_read_as_it_is(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    async with link_of(peer) as link:
        config = StreamConfig("ORDERS", ("orders.*.*",), transform=PARTITIONING.transforms[0])
        made, created = await link.ensure_stream(config)
        assert (made.transform, created) == (config.transform, True)
        assert await link.ensure_partitioned(WANTED) == PartitionedStream("ORDERS", storage="file")
        assert await link.stream_state("ORDERS-router") is None
        for number in range(10):
            await peer.publish(f"orders.{number % 5}.new", b"%d" % number)
        raws = await received(link, "ORDERS", PARTITIONING, 10)
        assert [int(raw[4].splitlines()[-1]) for raw in raws] == list(range(10))
        with pytest.raises(SourceError, match="4 partitions, the route 5 partitions") as caught:
            await link.ensure_partitioned(replace(WANTED, partitioning=replace(PARTITIONING, count=5)))
        assert caught.value.reason == "partitions_differ"


async def test_another_stream_of_that_name_is_refused(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.add_stream("ORDERS-router", ["others.>"])
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match="'ORDERS-router'") as caught:
            await link.ensure_partitioned(WANTED)
        assert caught.value.reason == "partitions_differ"


async def test_a_stream_that_the_route_has_read_without_partitions_is_not_copied(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        await link.open_consumer(ConsumerSpec("ORDERS", "router", (), 5.0, -1, 1000), Recorder())
        with pytest.raises(SourceError, match="without partitions") as caught:
            await link.ensure_partitioned(WANTED)
        assert caught.value.reason == "consumer_mismatch"
        await peer.delete_consumer("ORDERS", "router")
        assert (await link.ensure_partitioned(WANTED)).created


async def test_a_missing_stream_is_reported(peer: Peer) -> None:
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match="no stream 'ORDERS'") as caught:
            await link.ensure_partitioned(WANTED)
        assert caught.value.reason == "stream_not_found"


@pytest.mark.parametrize("request_", ["INFO.ORDERS", "INFO.ORDERS-router", "CREATE.ORDERS-router"])
async def test_without_a_permission_it_fails_at_once(peer: Peer, request_: str) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.deny_publish(f"$JS.API.STREAM.{request_}")
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match="may not publish") as caught:
            await link.ensure_partitioned(WANTED)
        assert caught.value.reason == "permission_denied"
