"""The wire's writing: two who may write, one socket, and no frame in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from router_trio.errors import LinkError, ProtocolError
from router_trio.link import SharedDelivery, SubscriptionBatch
from router_trio.nats.control_plane.plane import is_for_nats_py
from router_trio.nats.wire import MAX_PONGS_OWED, Wire
from router_trio.protocol.framing import PING, PONG, RawMessage


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

    return Wire(stream, pass_to_client=nothing, on_info=nothing, denied=nothing, read_done=nothing)


@asynccontextmanager
async def written(stream: trio.abc.Stream) -> AsyncIterator[tuple[Wire, trio.Nursery]]:
    """A wire whose writer runs, and a nursery that is cancelled at the end."""
    wire = wire_on(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.write)
        await wait_all_tasks_blocked()
        yield wire, nursery
        nursery.cancel_scope.cancel()


async def test_a_peer_that_pings_and_reads_nothing_is_not_answered_without_bound() -> None:
    ours, theirs = memory_stream_pair()
    wire = wire_on(ours)  # nothing writes
    await theirs.send_all(PING * (MAX_PONGS_OWED + 1))
    with trio.fail_after(5), pytest.raises(ProtocolError, match="PING"):
        await wire.read()


async def test_a_peer_that_reads_is_answered_as_often_as_it_pings() -> None:
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
        stream.taken.clear()
        with trio.fail_after(1):
            await wire.fence()
        assert stream.taken == [], "all that was appended is known to be with the server"
        # It says nothing of what is appended behind it, and no more of whether the server still lives.
        for sent, ask in ((b"2", wire.fence), (b"", wire.ping), (b"3", wire.ping)):
            stream.taken.clear()
            wire.send(sent)
            with trio.move_on_after(1) as waiting:
                await ask()
            assert waiting.cancelled_caught
            assert b"".join(stream.taken) == sent + PING
            answer(wire)


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
    wire._deliver()


def test_what_a_subscription_got_that_ends_while_others_get_theirs_is_not_delivered() -> None:
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


def test_of_what_is_delivered_together_a_subscription_that_has_ended_gets_nothing() -> None:
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


@pytest.mark.parametrize("raised", [MemoryError(), ExceptionGroup("two", [ValueError(), MemoryError()])])
async def test_without_memory_for_what_came_the_link_ends_and_no_bug_is_reported(raised: Exception) -> None:
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


# --- what is handed on to nats-py ---

WORDS = st.sampled_from(
    [b"MSG", b"HMSG", b"a", b"a.b", b"1", b"2", b"0", b"5", b"12", b"999999", b"1000001", b"-1", b"+1", b"01", b"1_0"]
) | st.sampled_from(
    [b"", b"\xff\xfe", b"a\x0bb", b"\x0c", b"\x00", b"\t", b"9" * 5_000, b"\xd9\xa1", b"\xc3\xbc", b"1.5", b"\x1c5"]
)
BLOCKS = st.sampled_from(
    [b"", b"NATS/1.0", b"NATS/1.0\r\n", b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n", b"x"]
) | st.sampled_from(
    [b"NATS/1.0 \xff\r\n\r\n", b"NATS/1.0  \r\n\r\n", b"NATS/1.0 100 A\r\nB\r\n\r\n", b"NATS/1.0 " + b"9" * 99, b"\xff"]
)


@st.composite
def foreign_frames(draw: st.DrawFn) -> bytes:
    """Frames that are nearly right, most of them."""
    if draw(st.integers(0, 3)) == 0:
        return b" ".join(draw(st.lists(WORDS, max_size=7))) + b"\r\n" + draw(st.binary(max_size=8)) + b"\r\n"
    block, body = draw(BLOCKS), draw(st.sampled_from([b"", b"x", b"\r\n", b"MSG a 1 1\r\nx\r\n", b"\xff"]))
    words = [b"HMSG" if block else b"MSG", draw(WORDS), draw(WORDS), *draw(st.lists(WORDS, max_size=1))]
    words += [b"%d" % len(block)] * bool(block)
    return b"%b %d\r\n%b%b\r\n" % (b" ".join(words), len(block) + len(body), block, body)


class Taken(Client):
    """nats-py's client, as far as a message goes through it before anybody asks whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._build_message(sid, subject, reply, data, await self._process_headers(headers))
        self.taken += 1


@settings(deadline=None)
@given(st.lists(foreign_frames(), max_size=6))
def test_nats_py_takes_whatever_is_handed_on_to_it(frames: list[bytes]) -> None:
    """Each frame as one message, and nothing is left over: it reads them as our parser does."""
    handed: list[bytes] = []

    def nothing(*arguments: object) -> None:
        """Nobody listens."""

    wire = Wire(
        memory_stream_pair()[0], pass_to_client=handed.append, on_info=nothing, denied=nothing, read_done=nothing
    )
    client = Taken()
    parser = Parser(client)
    with suppress(LinkError):
        for frame in frames:
            wire._parser.feed(frame)
            expected = sum(map(is_for_nats_py, wire._parser.foreign))
            wire._deliver()
            before = client.taken
            with suppress(StopIteration):
                parser.parse(b"".join(handed)).send(None)  # it waits for nothing
            handed.clear()
            assert not parser.buf
            assert parser.state == AWAITING_CONTROL_LINE
            assert client.taken == before + expected
