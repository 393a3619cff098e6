"""Promises of `router_trio.link` about durable consumers: how they are opened, shared, closed and recreated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_trio.errors import SourceError
from router_trio.link import Progress
from tests.contract.orders import SPEC, publish_orders, sequences
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation


async def test_a_consumer_delivers_only_what_its_filter_selects(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    for subject in ("orders.eu.1", "orders.us.1", "orders.eu.2"):
        await peer.publish(subject)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, filters=("orders.eu.*",)), received)
        consumer.pull(2, 5.0)
        raws = await received.until_delivered(2)
    assert [raw[0] for raw in raws] == [b"orders.eu.1", b"orders.eu.2"]
    assert [raw[1].split(b".")[8] for raw in raws] == [b"1", b"0"]


async def test_a_consumer_delivers_what_any_of_its_filters_selects(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "returns.>"])
    for subject in ("orders.eu.1", "orders.us.1", "returns.a.b", "orders.eu.2"):
        await peer.publish(subject)
    received = Recorder()
    async with link_of(peer) as link:
        spec = replace(SPEC, filters=("returns.>", "orders.eu.*"))
        consumer = await link.open_consumer(spec, received)
        consumer.pull(3, 5.0)
        raws = await received.until_delivered(3)
        await link.open_consumer(replace(spec, filters=("orders.eu.*", "returns.>")), Recorder())  # in any order
        with pytest.raises(SourceError, match=r"its filter is orders\.eu\.\*, returns\.>, the route's is returns\.>"):
            await link.open_consumer(replace(spec, filters=("returns.>",)), Recorder())
    assert [raw[0] for raw in raws] == [b"orders.eu.1", b"returns.a.b", b"orders.eu.2"]


async def test_unacked_messages_are_found_with_several_filters(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>", "returns.>", "other.>"])
    for number in range(40):
        await peer.publish(("orders.a", "other.b", "other.c", "returns.d", "other.e", "other.f")[number % 6])
    spec = replace(SPEC, filters=("orders.*", "returns.*"), ack_wait=30.0)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, received)
        consumer.pull(14, 5.0)
        raws = await received.until_delivered(14)
        assert not link.ack([raw[1] for raw in raws[:2]])
        await link.fence()
    async with link_of(peer) as link:
        again = await link.open_consumer(spec, Recorder())
        assert await again.unacked(1) == [number + 1 for number in range(40) if number % 3 == 0][2:]


async def test_a_durable_continues_where_the_last_link_left_off(peer: Peer) -> None:
    await publish_orders(peer, 4)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        for raw in await received.until_delivered(2):
            assert not link.ack([raw[1]])
        await link.fence()
    later = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, later)
        consumer.pull(2, 5.0)
        raws = await later.until_delivered(2)
    assert sequences(raws) == [3, 4]


async def test_an_existing_durable_keeps_its_own_ack_wait(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        first = await link.open_consumer(SPEC, Recorder())
        second = await link.open_consumer(replace(SPEC, ack_wait=7.0), Recorder())
    assert (first.ack_wait, second.ack_wait) == (1.0, 1.0)


async def test_a_missing_stream_raises_a_source_error_that_names_it(peer: Peer) -> None:
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match="ORDERS") as caught:
            await link.open_consumer(SPEC, Recorder())
        assert caught.value.reason == "stream_not_found"
        await link.fence()


async def test_a_durable_with_another_filter_raises_a_source_error_that_names_both(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link:
        await link.open_consumer(replace(SPEC, filters=("orders.eu.*",)), Recorder())
        with pytest.raises(SourceError) as caught:
            await link.open_consumer(replace(SPEC, filters=("orders.us.*",)), Recorder())
        assert caught.value.reason == "consumer_mismatch"
        assert "router" in str(caught.value)
        assert "orders.eu.*" in str(caught.value)
        assert "orders.us.*" in str(caught.value)
        await link.fence()


async def test_an_opened_consumer_reports_its_progress(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    spec = replace(SPEC, ack_wait=30.0)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, received)
        assert consumer.progress == Progress(0, in_use=False)
        assert await consumer.unacked(1) == []
        for n in range(4):
            await peer.publish(f"orders.{n}")
        consumer.pull(3, 30.0)
        raws = await received.until_delivered(3)
        assert not link.ack([raws[0][1]])
        await link.fence()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(spec, Recorder())
        assert consumer.progress == Progress(3, in_use=False, passed=1)
        assert [await consumer.unacked(first) for first in (1, 3, 4)] == [[2, 3], [3], []]


async def test_a_consumer_with_a_waiting_pull_of_another_link_is_in_use(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    async with link_of(peer) as link, peer.connect(peer.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(SPEC, Recorder())
        consumer.pull(3, 30.0)
        await link.fence()
        assert (await other.open_consumer(SPEC, Recorder())).progress.in_use


async def test_two_links_share_a_consumer_and_each_message_is_delivered_once(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    first, second = Recorder(), Recorder()
    async with link_of(peer) as one, peer.connect(peer.server, b"_INBOX.other", Recorder()) as other:
        for link, received in ((one, first), (other, second)):
            consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
            consumer.pull(10, 5.0)
            await link.fence()
        await one.send([operation(n, b"orders.new") for n in range(20)])
        await first.until_delivered(10)
        await second.until_delivered(10)
    assert sorted(sequences(first.messages + second.messages)) == list(range(1, 21))


async def test_a_drained_consumer_leaves_nothing_undelivered_and_gets_nothing_more(peer: Peer) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    drained, other = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), drained)
        consumer.pull(50, 30.0)
        await link.send([operation(n, b"orders.new") for n in range(20)])
        await drained.until_delivered(20)
        await consumer.drain()
        await link.send([operation(20, b"orders.new")])
        successor = await link.open_consumer(replace(SPEC, ack_wait=30.0), other)
        successor.pull(1, 5.0)
        (raw,) = await other.until_delivered(1)
    assert sequences(drained.messages) == list(range(1, 21))
    assert sequences([raw]) == [21]


async def test_a_recreated_durable_resumes_only_in_the_same_incarnation_of_its_stream(peer: Peer) -> None:
    await publish_orders(peer, 4)
    lost, resumed, recreated = Recorder(), Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, lost)
        resuming = replace(SPEC, start_sequence=3, stream_created=consumer.stream_created)
        await peer.delete_consumer("ORDERS", "router")
        consumer = await link.open_consumer(resuming, resumed)
        assert consumer.stream_created == resuming.stream_created
        consumer.pull(1, 5.0)
        assert sequences(await resumed.until_delivered(1)) == [3]
        await peer.delete_stream("ORDERS")
        await peer.add_stream("ORDERS", ["orders.>"])
        for n in range(4):
            await peer.publish(f"orders.{n}")
        consumer = await link.open_consumer(resuming, recreated)
        assert consumer.stream_created != resuming.stream_created
        consumer.pull(1, 5.0)
        assert sequences(await recreated.until_delivered(1)) == [1]


@pytest.mark.parametrize(
    ("last_sequence", "off", "went_back"),
    [(4, 0, False), (1, 0, False), (2, 0, False), (5, 0, True), (4, 1, True), (1, 1, True), (2, -1_000_000_000, True)],
)
async def test_a_stream_that_contradicts_what_was_known_of_it_counts_as_rolled_back(
    peer: Peer, last_sequence: int, off: int, went_back: bool
) -> None:
    await publish_orders(peer, 4)
    received = Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(4, 5.0)
        times = [int(raw[1].split(b".")[7]) for raw in await received.until_delivered(4)]
        known = replace(
            SPEC,
            stream_created=consumer.stream_created,
            last_sequence=last_sequence,
            last_time=times[min(last_sequence, 4) - 1] + off,
        )
        assert ((await link.open_consumer(known, Recorder())).went_back is not None) is went_back


@pytest.mark.parametrize(("off", "went_back"), [(0, False), (1, True)])
async def test_a_stream_that_still_has_the_last_message_is_the_same_stream(
    peer: Peer, off: int, went_back: bool
) -> None:
    await publish_orders(peer, 4)
    received, again = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        time = int((await received.until_delivered(2))[1][1].split(b".")[7]) + off
        known = replace(SPEC, stream_created="1970-01-01T00:00:00Z", start_sequence=3, last_sequence=2, last_time=time)
        assert (await link.open_consumer(known, Recorder())).went_back is not None
        await peer.delete_consumer("ORDERS", "router")
        consumer = await link.open_consumer(replace(known, found_by_message=True), again)
        assert (consumer.went_back is not None) is went_back
        consumer.pull(1, 5.0)
        assert sequences(await again.until_delivered(1)) == [1 if went_back else 3]


async def test_a_durable_recreated_in_a_stream_that_was_rolled_back_starts_at_the_first_message(peer: Peer) -> None:
    await publish_orders(peer, 4)
    received = Recorder()
    async with link_of(peer) as link:
        created = (await link.open_consumer(SPEC, Recorder())).stream_created
        await peer.delete_consumer("ORDERS", "router")
        known = replace(SPEC, stream_created=created, start_sequence=4, last_sequence=3, last_time=2**62)
        consumer = await link.open_consumer(known, received)
        assert consumer.went_back is not None
        consumer.pull(1, 5.0)
        assert sequences(await received.until_delivered(1)) == [1]


@pytest.mark.parametrize(("off", "went_back"), [(0, False), (1, True), (-1, True)])
async def test_a_durable_is_not_recreated_behind_another_message_than_the_known_one_before_its_start(
    peer: Peer, off: int, went_back: bool
) -> None:
    """The last known message was received after the rollback, and others received the messages before it."""
    await publish_orders(peer, 4)
    received, again = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(4, 5.0)
        times = [int(raw[1].split(b".")[7]) for raw in await received.until_delivered(4)]
        await peer.delete_consumer("ORDERS", "router")
        known = replace(
            SPEC,
            stream_created=consumer.stream_created,
            start_sequence=3,
            last_sequence=4,
            last_time=times[3],
            passed_sequence=2,
            passed_time=times[1] + off,
        )
        consumer = await link.open_consumer(known, again)
        assert (consumer.went_back is not None) is went_back
        consumer.pull(1, 5.0)
        assert sequences(await again.until_delivered(1)) == [1 if went_back else 3]


@pytest.mark.parametrize(("start", "went_back"), [(4, False), (5, False), (6, True), (61, True)])
async def test_a_stream_that_ends_before_the_start_of_a_durable_counts_as_rolled_back(
    start: int, went_back: bool, peer: Peer
) -> None:
    """A process that has received nothing knows the start from the durable that was deleted."""
    await publish_orders(peer, 4)
    received = Recorder()
    async with link_of(peer) as link:
        created = (await link.open_consumer(SPEC, Recorder())).stream_created
        await peer.delete_consumer("ORDERS", "router")
        known = replace(SPEC, stream_created=created, start_sequence=start)
        consumer = await link.open_consumer(known, received)
        assert (consumer.went_back is not None) is went_back
        await peer.publish("orders.4")
        consumer.pull(1, 5.0)
        assert sequences(await received.until_delivered(1)) == [1 if went_back else start]


async def test_a_delivered_message_is_gone_once_its_stream_or_its_consumer_no_longer_has_it(peer: Peer) -> None:
    await publish_orders(peer, 6)
    received = Recorder()
    async with link_of(peer) as link, peer.connect(peer.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(5, 5.0)
        raws = await received.until_delivered(5)
        times = {sequence: raw[1].split(b".")[7] for sequence, raw in enumerate(raws, 1)}
        late = {sequence: times[sequence] for sequence in (1, 2, 3)}
        assert not await consumer.gone(late, lambda: 2)
        assert not other.ack([raws[0][1], raws[1][1]])
        await other.fence()
        assert sorted(await consumer.gone(late, lambda: 2)) == [1, 2], "the earlier ones are acked too"
        assert not other.ack([raws[4][1]])
        link.nak(raws[2][1], 20.0)
        await other.fence()
        await link.fence()
        assert not await consumer.gone({3: times[3]}, lambda: 1)


async def test_a_delivered_message_is_gone_once_the_stream_has_another_one_at_its_sequence(peer: Peer) -> None:
    """This includes a message that the consumer of the new stream will not deliver."""
    await peer.add_stream("ORDERS", ["orders.>"])
    await peer.publish("orders.a")
    spec, received = replace(SPEC, filters=("orders.a",), ack_wait=30.0), Recorder()
    async with link_of(peer) as link, peer.connect(peer.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(spec, received)
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
        awaited = {1: raw[1].split(b".")[7]}
        await peer.delete_stream("ORDERS")
        await peer.add_stream("ORDERS", ["orders.>"])
        await peer.publish("orders.b")
        await peer.publish("orders.a")
        await other.open_consumer(spec, Recorder())
        assert [*await consumer.gone(awaited, lambda: 0)] == [1]
        assert not await consumer.gone({2: b""}, lambda: 0)


async def test_a_closed_consumer_gets_nothing_more_and_the_next_one_gets_the_message(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    closed, other = Recorder(), Recorder()
    async with link_of(peer) as link:
        consumer = await link.open_consumer(SPEC, closed)
        consumer.pull(3, 30.0)
        await link.fence()
        consumer.close()
        await link.fence()
        successor = await link.open_consumer(SPEC, other)
        successor.pull(1, 5.0)
        await peer.publish("orders.a")
        (raw,) = await other.until_delivered(1)
    assert closed.messages == []
    assert sequences([raw]) == [1]
