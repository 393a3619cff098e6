"""A TCP stream that is read after a wait and written in the turn of its caller, and the wire on it: real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from router_trio.errors import LinkError
from router_trio.nats.transport import TCPStream, stream_for_wire
from router_trio.nats.wire import Wire
from router_trio.protocol.framing import PING, PONG, RawMessage


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Yield both ends of a TCP connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        theirs = await listener.accept()
    async with ours, theirs:
        yield ours, theirs


def wire_on(stream: trio.SocketStream, log: list[str] | None = None) -> Wire:
    def nothing(*arguments: object) -> None:
        """Ignore the call."""

    told = [] if log is None else log
    return Wire(
        TCPStream(stream),
        on_info=nothing,
        denied=nothing,
        read_begins=lambda: told.append("begins"),
        read_done=lambda: told.append("done"),
    )


async def received(stream: trio.SocketStream, size: int) -> bytes:
    """Return `size` bytes of a stream."""
    data = b""
    with trio.fail_after(5):
        while len(data) < size:
            part = await stream.receive_some()
            assert part
            data += part
    return data


async def test_received_bytes_are_returned_and_the_end_is_empty() -> None:
    async with connected() as (ours, theirs):
        stream = TCPStream(ours)
        await theirs.send_all(b"hello")
        assert await stream.receive_some(100) == b"hello"
        await theirs.send_eof()
        assert await stream.receive_some(100) == b""


async def test_a_read_yields_to_other_tasks_even_if_data_is_ready() -> None:
    async with connected() as (ours, theirs), trio.open_nursery() as nursery:
        await theirs.send_all(b"12")
        turns: list[str] = []

        async def other() -> None:
            turns.append("other")

        nursery.start_soon(other)
        stream = TCPStream(ours)
        # The scheduler draws the order within one pass: a complete pass lies behind the second read.
        assert await stream.receive_some(1) + await stream.receive_some(1) == b"12"
        assert turns == ["other"]


async def test_a_reset_connection_is_broken_for_readers_and_writers() -> None:
    async with connected() as (ours, theirs):
        stream = TCPStream(ours)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await theirs.aclose()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1)
        with pytest.raises(trio.BrokenResourceError):
            stream.write_some(b"x")


async def test_closing_the_stream_ends_the_reader_and_no_other_socket_is_written() -> None:
    async with connected() as (ours, _):
        stream = TCPStream(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_closed, stream)
            await wait_all_tasks_blocked()
            await ours.aclose()
        await _read_closed(stream)
        async with connected() as (_, other):
            with pytest.raises(trio.BrokenResourceError):
                stream.write_some(b"x")
            with trio.move_on_after(0.05):
                assert not await other.receive_some()


async def _read_closed(stream: TCPStream) -> None:
    with trio.fail_after(5), pytest.raises(trio.ClosedResourceError):
        await stream.receive_some(1)


async def test_data_sent_in_the_turn_of_a_read_is_written_in_that_turn_in_order() -> None:
    async with connected() as (ours, theirs), trio.open_nursery() as nursery:
        log: list[str] = []
        wire = wire_on(ours, log)

        def deliver(batch: Sequence[RawMessage]) -> None:
            for _ in batch:
                log.append("message")
                wire.send(b"ack ")
                wire.send_in_this_turn(b"copy ", fenced=True)
                log.append(f"{len(wire._out)} left")

        sid = wire.subscriptions.add(b"in", deliver)
        # No task runs `write`: all that leaves was written in the turn of the reader.
        nursery.start_soon(wire.read)
        await theirs.send_all(b"MSG in %b 1\r\nx\r\n" % sid + PING)
        expected = b"SUB in %b\r\n" % sid + b"ack copy " + PING + PONG
        assert await received(theirs, len(expected)) == expected
        assert log == ["begins", "message", "0 left", "done"]
        nursery.cancel_scope.cancel()


async def test_data_that_the_socket_does_not_take_is_written_later_by_the_writer_in_order() -> None:
    async with connected() as (ours, theirs), trio.open_nursery() as nursery:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire = wire_on(ours)
        large = b"%b" % bytes(range(256)) * 20_000
        sid = wire.subscriptions.add(b"in", lambda batch: wire.send(large))
        nursery.start_soon(wire.write)
        await wait_all_tasks_blocked()
        head = await received(theirs, len(b"SUB in %b\r\n" % sid))
        nursery.start_soon(wire.read)
        await theirs.send_all(b"MSG in %b 1\r\nx\r\n" % sid)
        await wait_all_tasks_blocked()
        assert not wire.clear
        wire.send(b"behind it")
        assert head + await received(theirs, len(large) + 9) == b"SUB in %b\r\n" % sid + large + b"behind it"
        await wait_all_tasks_blocked()
        assert wire.clear
        nursery.cancel_scope.cancel()


async def test_a_socket_that_breaks_in_the_turn_of_a_read_ends_the_link_through_its_writer() -> None:
    async with connected() as (ours, theirs):
        wire = wire_on(ours)
        sid = wire.subscriptions.add(b"in", lambda batch: wire.send(b"x"))
        wire._write_some = _broken
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.read)
            await theirs.send_all(b"MSG in %b 1\r\nx\r\n" % sid)
            while wire.clear:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        with trio.fail_after(5), pytest.raises(LinkError, match="broke while writing: no more"):
            await wire.write()


def _broken(data: bytes) -> int:
    raise trio.BrokenResourceError("no more")


@pytest.mark.parametrize("plain", [True, False])
async def test_the_callback_runs_before_bytes_leave(plain: bool) -> None:
    """It runs whether or not a write waits for the socket, and also for a stream that is not plain TCP, such as TLS."""
    async with connected() as (ours, theirs):
        noted: list[str] = []
        one = ours if plain else trio.StapledStream(ours, ours)
        stream = stream_for_wire(one, lambda: noted.append("" if nothing_arrived(theirs) else "late"))
        assert isinstance(stream, TCPStream) is plain
        await stream.send_all(b"one")
        assert noted == [""]
        assert await received(theirs, 3) == b"one"
        if isinstance(stream, TCPStream):
            assert stream.write_some(b"two") == 3
            assert noted == ["", ""]
            assert await received(theirs, 3) == b"two"
        await theirs.send_all(b"three")
        assert await stream.receive_some(10) == b"three"


def nothing_arrived(stream: trio.SocketStream) -> bool:
    """Return True if there is nothing to read."""
    try:
        stream.socket._sock.recv(1, socket.MSG_PEEK)  # type: ignore[attr-defined]
    except BlockingIOError:
        return True
    return False


async def test_a_single_process_has_no_callback() -> None:
    async with connected() as (ours, _):
        assert type(stream_for_wire(ours, None)) is TCPStream
