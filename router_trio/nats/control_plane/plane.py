"""The control plane of a link, opened when it is needed: most core routes never use the JetStream API.

Importing its modules takes a third of a router's start. So that happens in a thread at the first request, while
messages continue to be routed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from router_trio.errors import LinkError, ProtocolError, SourceError, innermost, reasons
from router_trio.nats.info import ServerInfo, quote
from router_trio.nats.transport import out_of_resources

if TYPE_CHECKING:
    from router_trio.nats.control_plane.client import RunningClient, WireTransport

if "asyncio" in sys.modules:
    # A program uses asyncio. Importing trio-asyncio changes asyncio for a moment, which must not happen while a loop
    # runs.
    import_module("router_trio.nats.control_plane.asyncio_loop")


_STATUS = b"NATS/1.0"
_FOREIGN = re.compile(rb"H?MSG [!-~]+ [0-9]{1,6}(?: [!-~]+)? [0-9 ]+")
"""Lines that nats-py parses as our parser does."""

_SID = re.compile(rb"[0-9]{1,20}")


class ControlPlane:
    """The nats-py client of one link. `run` opens it when it is needed."""

    def __init__(
        self,
        info: ServerInfo,
        inbox_prefix: str,
        send: Callable[[bytes], None],
        pinged: Callable[[], None],
        ping: Callable[[], Awaitable[None]],
        modules: Sequence[str] = (),
    ) -> None:
        """`send` and `pinged` are for `WireTransport`, `ping` is that of the wire.

        `modules` send requests by it, and are imported with nats-py.
        """
        self.ping: Callable[[], Awaitable[None]] = ping
        self._modules = ("router_trio.nats.control_plane.client", *modules)
        self._info = info
        self._inbox_prefix = inbox_prefix
        self._send = send
        self._pinged = pinged
        self._wanted = trio.Event()
        self._opened = trio.Event()
        self._transport: WireTransport | None = None
        self._running: RunningClient | None = None
        self._lacking: LinkError | None = None
        self._ended = False

    async def run(self) -> None:
        """Open a client when it is needed, and watch it. Raises `LinkError` when it has ended."""
        try:
            while True:
                await self._wanted.wait()
                try:
                    await self._run_client()
                except Exception as error:
                    lacking = out_of_resources(innermost(error))
                    if lacking is None or self._ended:
                        raise
                    # Messages are routed without it. `ready_client` raises this, and may be called again.
                    self._lacking = lacking
                over, self._wanted, self._opened = self._opened, trio.Event(), trio.Event()
                over.set()
        finally:
            self._end()

    def _end(self) -> None:
        """Let requests fail from now on: routes may still send some, while the link is closed."""
        self._ended = True
        self._running = None
        self._opened.set()

    async def ready_client(self) -> RunningClient:
        """Return the client, once it is open. Can be cancelled.

        Raises `SourceError` if the system has no descriptor or thread left for it, and `LinkError` if the link has
        ended.
        """
        if self._running is None and not self._ended:
            self._wanted.set()
            await self._opened.wait()
        if self._ended:
            raise LinkError("the link has ended", reason=reasons.NOT_CONNECTED)
        if self._running is None:
            assert self._lacking is not None
            raise SourceError(str(self._lacking), reason=self._lacking.reason)
        return self._running

    def pass_to_client(self, data: bytes) -> None:
        """Pass bytes from the wire to nats-py."""
        if self._transport is not None:
            self._transport.feed(data)

    def forget_inbox(self) -> None:
        """Let nats-py, if it runs, subscribe to an inbox for its answers again: see `RunningClient`."""
        if self._running is not None:
            self._running.forget_inbox()

    async def _run_client(self) -> None:
        # With a limiter of its own, since the program's may be used up. Waits for the thread even if cancelled.
        await trio.to_thread.run_sync(self._import_modules, limiter=trio.CapacityLimiter(1))
        from router_trio.nats.control_plane.client import WireTransport, open_client

        transport = WireTransport(self._info, self._send, self._pinged)
        async with open_client(transport, self._inbox_prefix) as running:
            self._transport, self._running = transport, running
            self._opened.set()
            try:
                await running.died()
            finally:
                self._end()

    def _import_modules(self) -> None:
        for name in self._modules:
            import_module(name)


def is_for_nats_py(frame: bytes) -> bool:
    """Return True if a frame should be passed to nats-py, and would not end its reader.

    A late message of a subscription that has ended should not be. A frame would end the reader that a server relays and
    no JetStream API sends: a subject or a status that is not UTF-8, a vertical tab in a subject, a header block without
    an end. Raises `ProtocolError` for a frame that no server sends.
    """
    line, _, body = frame.partition(b"\r\n")
    arguments = line.split(b" ")
    if not _SID.fullmatch(arguments[2]):
        raise ProtocolError(f"the server sent a message for an unknown subscription: {quote(line)}")
    if not _FOREIGN.fullmatch(line):
        return False
    block = body[: int(arguments[-2])] if arguments[0] == b"HMSG" else b""
    return not block or (len(block) > len(_STATUS) and block.isascii())
