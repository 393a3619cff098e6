"""The wire's writing: two who may write, one socket, and no frame in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from router_trio.errors import LinkError
from router_trio.link import Arrivals, Together
from router_trio.nats.wire import Wire
from router_trio.protocol import PING, PONG, RawMessage


class SlowStream(trio.abc.Stream):
    """Takes bytes when it is told to, and remembers them."""

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
        """Nobody listens."""

    return Wire(stream, hand_on=nothing, informed=nothing, denied=nothing, handed_out=nothing)


@asynccontextmanager
async def written(stream: trio.abc.Stream) -> AsyncIterator[tuple[Wire, trio.Nursery]]:
    """A wire whose writer runs, and a nursery that is cancelled at the end."""
    wire = wire_on(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.write)
        await wait_all_tasks_blocked()
        yield wire, nursery
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", [b"one ", b""])
async def test_the_writer_wakes_for_what_is_appended_after_another_has_written(first: bytes) -> None:
    ours, theirs = memory_stream_pair()
    async with written(ours) as (wire, _):
        await wire.send_now(first)
        wire.send(b"two")
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert await theirs.receive_some() == first + b"two"


async def test_what_comes_while_somebody_writes_is_written_after_it_in_order(autojump_clock: MockClock) -> None:
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


async def test_a_fence_goes_with_what_is_fenced_and_whoever_asks_next_waits_for_it(autojump_clock: MockClock) -> None:
    stream = SlowStream()
    stream.go_on.set()
    async with written(stream) as (wire, _):
        await wire.send_now(b"1", fenced=True)
        with trio.move_on_after(1) as waiting:
            await wire.fence()
        assert waiting.cancelled_caught
        assert b"".join(stream.taken) == b"1" + PING
        answer(wire)
        # What is answered, or behind which something was appended, says nothing of what comes now.
        for sent in (b"", b"2"):
            stream.taken.clear()
            wire.send(sent)
            with trio.move_on_after(1) as waiting:
                await wire.fence()
            assert waiting.cancelled_caught
            assert b"".join(stream.taken) == sent + PING


async def test_no_fence_goes_with_anything_while_one_is_under_way(autojump_clock: MockClock) -> None:
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
    wire._hand_out()


def test_what_a_subscription_got_that_ends_while_others_get_theirs_is_not_delivered() -> None:
    wire = wire_on(SlowStream())
    got: list[bytes] = []

    def first(batch: list[RawMessage]) -> None:
        got.extend(raw[0] for raw in batch)
        wire.unsubscribe(second)

    sid = wire.subscribe(b"one", first)
    second = wire.subscribe(b"two", first)
    wire._parser.feed(b"MSG one %b 0\r\n\r\nMSG two %b 0\r\n\r\n" % (sid, second))
    wire._hand_out()
    assert got == [b"one"]
    wire._parser.feed(b"MSG two %b 0\r\n\r\nMSG one %b 0\r\n\r\n" % (second, sid))
    wire._hand_out()
    assert got == [b"one", b"one"]


def test_of_what_is_delivered_together_a_subscription_that_has_ended_gets_nothing() -> None:
    wire = wire_on(SlowStream())
    got: list[list[tuple[str, list[bytes]]]] = []

    def ends_second(batch: list[RawMessage]) -> None:
        wire.unsubscribe(sids[1])

    def together(touched: Sequence[Arrivals]) -> None:
        got.append([(one.key, [raw[0] for raw in one]) for one in touched])

    sids = [wire.subscribe(b"x", Together(together, key)) for key in ("first", "second", "third")]
    ender = wire.subscribe(b"end", ends_second)
    frames = [b"MSG end %b 0\r\n\r\n" % ender, *(b"MSG %d %b 0\r\n\r\n" % one for one in enumerate(sids))]
    wire._parser.feed(b"".join([*frames, frames[1]]))
    wire._hand_out()
    assert got == [[("first", [b"0", b"0"]), ("second", []), ("third", [b"2"])]]
    wire._parser.feed(frames[3] + frames[2] + frames[1])
    wire._hand_out()
    assert got[1:] == [[("third", [b"2"]), ("first", [b"0"])]]


async def test_who_is_cancelled_while_another_writes_tears_nothing(autojump_clock: MockClock) -> None:
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


async def test_cancelled_in_the_middle_of_a_write_the_link_ends(autojump_clock: MockClock) -> None:
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


async def test_a_write_that_fails_is_the_end_of_the_link_for_both() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(LinkError, match="while writing"):
        await wire_on(ours).send_now(b"1")
