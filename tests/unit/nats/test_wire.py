"""Writing by the wire: two possible writers, one socket, and no torn frame."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from router_trio.errors import LinkError, ProtocolError
from router_trio.link import SharedDelivery, SubscriptionBatch
from router_trio.nats.wire import MAX_PONGS_OWED, Wire
from router_trio.protocol.framing import PING, PONG, RawMessage


class SlowStream(trio.abc.Stream):
    """A stream that accepts bytes after `go_on`, and records them."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.go_on = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.go_on.wait()
        self.taken.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError("nobody asks")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def wire_on(stream: trio.abc.Stream) -> Wire:
    def nothing(*arguments: object) -> None:
        """Ignore the call."""

    return Wire(stream, on_info=nothing, denied=nothing, read_done=nothing)


@asynccontextmanager
async def written(stream: trio.abc.Stream) -> AsyncIterator[tuple[Wire, trio.Nursery]]:
    """Yield a wire whose writer runs, and a nursery that is cancelled at the end."""
    wire = wire_on(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.write)
        await wait_all_tasks_blocked()
        yield wire, nursery
        nursery.cancel_scope.cancel()


async def test_answers_to_a_peer_that_pings_and_reads_nothing_are_bounded() -> None:
    ours, theirs = memory_stream_pair()
    wire = wire_on(ours)  # nothing writes
    await theirs.send_all(PING * (MAX_PONGS_OWED + 1))
    with trio.fail_after(5), pytest.raises(ProtocolError, match="PING"):
        await wire.read()


async def test_a_peer_that_reads_gets_an_answer_to_every_ping() -> None:
    ours, theirs = memory_stream_pair()
    async with written(ours) as (wire, nursery):
        nursery.start_soon(wire.read)
        for _ in range(3):
            await theirs.send_all(PING * MAX_PONGS_OWED)
            await wait_all_tasks_blocked()
            assert await theirs.receive_some() == PONG * MAX_PONGS_OWED


@pytest.mark.parametrize("first", [b"one ", b""])
async def test_the_writer_wakes_for_what_is_appended_after_another_has_written(first: bytes) -> None:
    ours, theirs = memory_stream_pair()
    async with written(ours) as (wire, _):
        await wire.send_now(first)
        wire.send(b"two")
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert await theirs.receive_some() == first + b"two"


async def test_data_appended_during_a_write_is_written_after_it_in_order(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    async with written(stream) as (wire, nursery):
        wire.send(b"1")
        await wait_all_tasks_blocked()
        nursery.start_soon(wire.send_now, b"2")
        await wait_all_tasks_blocked()
        wire.send(b"3")
        nursery.start_soon(wire.send_now, b"4")
        await wait_all_tasks_blocked()
        assert stream.taken == []
        stream.go_on.set()
        await wait_all_tasks_blocked()
        assert b"".join(stream.taken) == b"1234"


async def test_a_fence_is_sent_with_its_data_and_the_next_caller_waits_for_it(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    stream.go_on.set()
    async with written(stream) as (wire, _):
        await wire.send_now(b"1", fenced=True)
        with trio.move_on_after(1) as waiting:
            await wire.fence()
        assert waiting.cancelled_caught
        assert b"".join(stream.taken) == b"1" + PING
        answer(wire)
        stream.taken.clear()
        with trio.fail_after(1):
            await wire.fence()
        assert stream.taken == [], "all that was appended is known to be with the server"
        # That answer proves nothing about data appended after it, nor that the server is still alive.
        for sent, ask in ((b"2", wire.fence), (b"", wire.ping), (b"3", wire.ping)):
            stream.taken.clear()
            wire.send(sent)
            with trio.move_on_after(1) as waiting:
                await ask()
            assert waiting.cancelled_caught
            assert b"".join(stream.taken) == sent + PING
            answer(wire)


async def test_no_second_fence_is_attached_while_one_is_under_way(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    stream.go_on.set()
    async with written(stream) as (wire, nursery):
        await wire.send_now(b"1", fenced=True)
        await wire.send_now(b"2", fenced=True)
        assert b"".join(stream.taken) == b"1" + PING + b"2"
        behind = trio.Event()
        nursery.start_soon(fenced, wire, behind)
        await wait_all_tasks_blocked()
        assert b"".join(stream.taken) == b"1" + PING + b"2" + PING
        answer(wire)
        await wait_all_tasks_blocked()
        assert not behind.is_set()
        answer(wire)
        await wait_all_tasks_blocked()
        assert behind.is_set()


async def fenced(wire: Wire, behind: trio.Event) -> None:
    await wire.fence()
    behind.set()


def answer(wire: Wire) -> None:
    wire._parser.feed(PONG)
    wire._deliver()


def test_messages_of_a_subscription_that_ends_during_a_delivery_are_not_delivered() -> None:
    wire = wire_on(SlowStream())
    got: list[bytes] = []

    def first(batch: list[RawMessage]) -> None:
        got.extend(raw[0] for raw in batch)
        wire.subscriptions.remove(second)

    sid = wire.subscriptions.add(b"one", first)
    second = wire.subscriptions.add(b"two", first)
    wire._parser.feed(b"MSG one %b 0\r\n\r\nMSG two %b 0\r\n\r\n" % (sid, second))
    wire._deliver()
    assert got == [b"one"]
    wire._parser.feed(b"MSG two %b 0\r\n\r\nMSG one %b 0\r\n\r\n" % (second, sid))
    wire._deliver()
    assert got == [b"one", b"one"]


def test_an_ended_subscription_gets_nothing_of_a_shared_delivery() -> None:
    wire = wire_on(SlowStream())
    got: list[list[tuple[str, list[bytes]]]] = []

    def ends_second(batch: list[RawMessage]) -> None:
        wire.subscriptions.remove(sids[1])

    def together(touched: Sequence[SubscriptionBatch]) -> None:
        got.append([(one.key, [raw[0] for raw in one]) for one in touched])

    sids = [wire.subscriptions.add(b"x", SharedDelivery(together, key)) for key in ("first", "second", "third")]
    ender = wire.subscriptions.add(b"end", ends_second)
    frames = [b"MSG end %b 0\r\n\r\n" % ender, *(b"MSG %d %b 0\r\n\r\n" % one for one in enumerate(sids))]
    wire._parser.feed(b"".join([*frames, frames[1]]))
    wire._deliver()
    assert got == [[("first", [b"0", b"0"]), ("second", []), ("third", [b"2"])]]
    wire._parser.feed(frames[3] + frames[2] + frames[1])
    wire._deliver()
    assert got[1:] == [[("third", [b"2"]), ("first", [b"0"])]]


async def test_a_caller_cancelled_while_another_writes_tears_no_frame(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    async with written(stream) as (wire, _):
        wire.send(b"1")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await wire.send_now(b"2")
        assert scope.cancelled_caught
        stream.go_on.set()
        await wait_all_tasks_blocked()
        assert b"".join(stream.taken) == b"12"


async def test_a_cancelled_write_ends_the_link(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    wire = wire_on(stream)
    with pytest.RaisesGroup(pytest.RaisesExc(LinkError, match="middle")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.write)
            await wait_all_tasks_blocked()
            with trio.move_on_after(1) as scope:
                await wire.send_now(b"PUB a 1")
            assert scope.cancelled_caught
            stream.go_on.set()
            await trio.sleep(1)
            raise AssertionError("the link lives on")
    assert stream.taken == []


async def test_a_failed_write_ends_the_link_for_reader_and_writer() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(LinkError, match="while writing"):
        await wire_on(ours).send_now(b"1")


@pytest.mark.parametrize("raised", [MemoryError(), ExceptionGroup("two", [ValueError(), MemoryError()])])
async def test_out_of_memory_while_delivering_ends_the_link_and_is_not_reported_as_a_bug(raised: Exception) -> None:
    ours, theirs = memory_stream_pair()
    wire = wire_on(ours)

    def deliver() -> None:
        raise raised

    await theirs.send_all(b"PING\r\n")
    wire._deliver = deliver  # type: ignore[method-assign]
    with pytest.raises(LinkError, match=r"no memory left.*MemoryMax") as caught:
        await wire.read()
    assert caught.value.reason == "resources"
    assert "bug" not in str(caught.value)
