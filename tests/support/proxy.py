"""A TCP proxy that imitates the faults of networks: cut, reset, swallow, delay, throttle, refuse.

It holds its port for its lifetime, also while it refuses. A reset or an end of one side is passed on to the other. It
accepts before it connects to its target: a client of a dead target is accepted, then closed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Literal

import trio

from router_trio.embedded import HOST, reserve_port

Direction = Literal["both", "to_server", "to_client"]
_CHUNK = 65_536
_CHUNKS_HELD = 16  # limit of what a direction holds back in memory, beside the buffers of the kernel
_SLICES_PER_SECOND = 20  # granularity of a throttled direction
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery for the tasks of a test tool, cancelled at the end.

    An error of the body is raised ungrouped, so that `pytest.raises` around the tool sees it.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Flow:
    """The faults applied to the bytes of one direction, over all connections."""

    def __init__(self) -> None:
        self.bytes = 0
        self._changed = trio.Event()
        self.clear()

    def clear(self) -> None:
        self.set(blackholed=False, delay=0.0, rate=0, remaining=0)

    def set(
        self,
        *,
        blackholed: bool | None = None,
        delay: float | None = None,
        rate: int | None = None,
        remaining: int | None = None,
    ) -> None:
        if blackholed is not None:
            self.blackholed = blackholed
        if delay is not None:
            self.delay = delay
        if rate is not None:
            self.rate = rate
        if remaining is not None:
            self.remaining = remaining
        self._changed.set()
        self._changed = trio.Event()

    async def open(self) -> None:
        while self.blackholed:
            await self._changed.wait()

    async def pause(self, seconds: float) -> None:
        """Sleep, but no longer than the present setting lasts."""
        with trio.move_on_after(seconds):
            await self._changed.wait()

    def allowance(self, size: int) -> int:
        limits = [size]
        if self.rate:
            limits.append(max(1, self.rate // _SLICES_PER_SECOND))
        if self.remaining:
            limits.append(self.remaining)
        return min(limits)

    def passed(self, size: int) -> bool:
        """Count bytes that went through. Return True if they were the last before the cut."""
        self.bytes += size
        if not self.remaining:
            return False
        self.remaining -= size
        return self.remaining == 0


class TcpProxy:
    """A proxy, run by `tcp_proxy`. Its faults are plain functions that take effect at once."""

    def __init__(self, nursery: trio.Nursery, port: int, target_host: str, target_port: int) -> None:
        self.port = port
        self.connections = 0
        """Connections accepted so far."""
        self._nursery = nursery
        self._target = (target_host, target_port)
        self._listener: trio.socket.SocketType | None = None
        self._to_server = _Flow()
        self._to_client = _Flow()
        self._links: list[list[trio.SocketStream]] = []  # the client's side, then the server's once there is one

    @property
    def url(self) -> str:
        """The URL to which NATS clients connect."""
        return f"nats://{HOST}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Client connections that are open now, from the proxy's side."""
        return len(self._links)

    @property
    def bytes_to_server(self) -> int:
        """Bytes passed on to the target so far."""
        return self._to_server.bytes

    @property
    def bytes_to_client(self) -> int:
        """Bytes passed on to clients so far."""
        return self._to_client.bytes

    def cut(self) -> None:
        """Close every connection now, on both sides; bytes under way are lost. New ones are accepted."""
        for stream in self._take_all():
            with suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)
            stream.socket.close()

    def reset(self) -> None:
        """Reset (RST) every connection now, on both sides. New ones are accepted."""
        for stream in self._take_all():
            _reset(stream)

    def blackhole(self, direction: Direction = "both") -> None:
        """Pass nothing on, not even an end, as if every packet were lost. `clear` releases the held data.

        New connections are accepted and receive nothing.
        """
        for flow in self._flows(direction):
            flow.set(blackholed=True)

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Pass everything on with this delay, in order."""
        for flow in self._flows(direction):
            flow.set(delay=seconds)

    def throttle(self, bytes_per_second: int, direction: Direction = "both") -> None:
        """Limit each connection to this rate."""
        for flow in self._flows(direction):
            flow.set(rate=bytes_per_second)

    def cut_after(self, n_bytes: int, direction: Direction) -> None:
        """Call `cut` once when this many more bytes, on all connections together, have gone through."""
        if n_bytes < 1:
            raise ValueError(f"cut_after needs at least 1 byte, not {n_bytes}: to cut now call cut()")
        for flow in self._flows(direction):
            flow.set(remaining=n_bytes)

    def clear(self) -> None:
        """End any blackhole, delay, throttle and pending cut."""
        for flow in self._flows("both"):
            flow.clear()

    def refuse(self) -> None:
        """Refuse new connections; open ones live on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept connections, on the same port as always."""
        if self._listener is None:
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            plain.bind((HOST, self.port))
            plain.listen(128)
            self._listener = trio.socket.from_stdlib_socket(plain)
            self._nursery.start_soon(self._serve, self._listener)

    def _flows(self, direction: Direction) -> Iterable[_Flow]:
        if direction != "to_client":
            yield self._to_server
        if direction != "to_server":
            yield self._to_client

    async def _serve(self, listener: trio.socket.SocketType) -> None:
        with suppress(*_GONE, OSError), listener:
            while True:
                client, _ = await listener.accept()
                self.connections += 1
                self._nursery.start_soon(self._connect, trio.SocketStream(client))

    def _take_all(self) -> list[trio.SocketStream]:
        streams = [stream for link in self._links for stream in link]
        self._links.clear()
        return streams

    async def _connect(self, client: trio.SocketStream) -> None:
        link = [client]
        self._links.append(link)
        try:
            async with client:
                try:
                    server = await trio.open_tcp_stream(*self._target)
                except OSError:
                    return
                async with server:
                    if link in self._links:  # not cut in the meantime
                        link.append(server)
                        await self._pass(client, server)
        finally:
            if link in self._links:
                self._links.remove(link)

    async def _pass(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            for source, flow, sink in ((client, self._to_server, server), (server, self._to_client, client)):
                sender, receiver = trio.open_memory_channel[tuple[float, bytes]](_CHUNKS_HELD)
                nursery.start_soon(self._read, source, flow, sender, sink)
                nursery.start_soon(self._write, receiver, flow, sink, source)

    async def _read(
        self,
        source: trio.SocketStream,
        flow: _Flow,
        sender: trio.MemorySendChannel[tuple[float, bytes]],
        sink: trio.SocketStream,
    ) -> None:
        with sender:
            try:
                while True:
                    await flow.open()
                    data = await source.receive_some(_CHUNK)
                    await sender.send((trio.current_time() + flow.delay, data))
                    if not data:
                        return
            except _GONE:
                _reset(sink)

    async def _write(
        self,
        receiver: trio.MemoryReceiveChannel[tuple[float, bytes]],
        flow: _Flow,
        sink: trio.SocketStream,
        source: trio.SocketStream,
    ) -> None:
        try:
            with receiver:
                async for due, data in receiver:
                    while flow.delay and (early := due - trio.current_time()) > 0:
                        await flow.pause(early)
                    await flow.open()
                    if not data:
                        await sink.send_eof()
                        return
                    await self._send(memoryview(data), flow, sink)
        except _GONE:
            _reset(source)

    async def _send(self, data: memoryview, flow: _Flow, sink: trio.SocketStream) -> None:
        while data:
            await flow.open()
            size = flow.allowance(len(data))
            await sink.send_all(data[:size])
            data = data[size:]
            if flow.passed(size):
                self.cut()
            if flow.rate:
                await flow.pause(size / flow.rate)


@asynccontextmanager
async def tcp_proxy(target_host: str, target_port: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy in front of a server, on a port of its own; close every connection at the end."""
    with reserve_port() as port:
        async with background() as nursery:
            proxy = TcpProxy(nursery, port, target_host, target_port)
            proxy.accept()
            yield proxy


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError, *_GONE):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
