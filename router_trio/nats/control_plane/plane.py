"""The control plane of a link, opened when it is needed: most core routes never ask the JetStream API for anything.

What it is made of takes a third of a router's start to import. So that happens in a thread, when the first request is
made, while messages pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from router_trio.errors import LinkError, SourceError, innermost
from router_trio.nats.dial import out_of_resources
from router_trio.nats.info import ServerInfo

if TYPE_CHECKING:
    from router_trio.nats.control_plane.client import RunningClient, WireTransport

if "asyncio" in sys.modules:
    # A program of asyncio: while its loop runs is no time to import trio-asyncio, which changes asyncio for a moment.
    import_module("router_trio.nats.control_plane.asyncio_loop")


class ControlPlane:
    """Requests of one link to the JetStream API. `run` is its lifetime."""

    def __init__(
        self,
        info: ServerInfo,
        inbox_prefix: str,
        send: Callable[[bytes], None],
        pinged: Callable[[], None],
        modules: Sequence[str] = (),
    ) -> None:
        """See `WireTransport`. `modules` are imported first, too: what asks by this, and needs nats-py."""
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

    async def run(self) -> None:
        """Open a client when it is wanted, and watch it. Raises `LinkError` when it has ended."""
        while True:
            await self._wanted.wait()
            try:
                await self._run_client()
            except Exception as error:
                lacking = out_of_resources(innermost(error))
                if lacking is None or self._running is not None:
                    raise
                # Messages pass without it: whoever asks is told, and may ask again.
                self._lacking = lacking
            over, self._wanted, self._opened = self._opened, trio.Event(), trio.Event()
            over.set()

    async def ready_client(self) -> RunningClient:
        """Return the client when it is there. Can be cancelled.

        Raises `SourceError` if the system has no descriptor or thread left for it.
        """
        if self._running is None:
            self._wanted.set()
            await self._opened.wait()
        if self._running is None:
            assert self._lacking is not None
            raise SourceError(str(self._lacking), reason=self._lacking.reason)
        return self._running

    def pass_to_client(self, data: bytes) -> None:
        """Take bytes that the wire has for nats-py."""
        if self._transport is not None:
            self._transport.feed(data)

    def forget_inbox(self) -> None:
        """See `RunningClient.forget_inbox`."""
        if self._running is not None:
            self._running.forget_inbox()

    async def _run_client(self) -> None:
        # With a limiter of its own, since the program's may be used up. Waited for also when cancelled.
        await trio.to_thread.run_sync(self._import_modules, limiter=trio.CapacityLimiter(1))
        from router_trio.nats.control_plane.client import WireTransport, open_client

        transport = WireTransport(self._info, self._send, self._pinged)
        async with open_client(transport, self._inbox_prefix) as running:
            self._transport, self._running = transport, running
            self._opened.set()
            await running.died()

    def _import_modules(self) -> None:
        for name in self._modules:
            import_module(name)
