"""Routers that follow one another: each is observed, and its ledgers are checked when it is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial

import trio

from router_trio import Live, Settings
from router_trio.errors import AuthorizationError
from tests.resilience.chaos.spy import Spy
from tests.support.proxy import TcpProxy
from tests.support.watch import Watch, watched


class Kept(ABC):
    """A router that is started again whenever it is left, until `close`. `proxies` are between it and the server."""

    def __init__(self, proxies: Sequence[TcpProxy]) -> None:
        self.proxies = proxies
        self._leave = trio.Event()
        self._over = False
        self._left = trio.Event()
        self._opened = trio.Event()

    @abstractmethod
    async def keep(self) -> None:
        """Run a router, and a new one whenever that is left, until `close`."""

    async def restart(self) -> None:
        """Leave the running router, and wait for the next."""
        self._opened = trio.Event()
        self._leave.set()
        await self._opened.wait()

    async def close(self) -> None:
        """Leave the last router: it drains, and its ledgers are closed."""
        self._over = True
        self._left = trio.Event()
        self._leave.set()
        await self._left.wait()

    async def is_open(self) -> None:
        """Wait for the first router."""
        await self._opened.wait()


class KeptRouter(Kept):
    """A router in this process. `alone`: there is no other router in this process."""

    def __init__(self, settings: Settings, spy: Spy, proxies: Sequence[TcpProxy], *, alone: bool) -> None:
        super().__init__(proxies)
        self.runs: list[Watch] = []
        self.failed: Counter[str] = Counter()
        """Messages that routes failed, by reason, over all finished runs; `received` and `routed` likewise."""
        self.received = 0
        self.routed = 0
        self._settings = settings
        self._spy = spy
        self._alone = alone

    @property
    def live(self) -> Live:
        """The router that runs now, or ran last."""
        live = self.runs[-1].live
        assert live is not None
        return live

    async def keep(self) -> None:
        connect = partial(self._spy.connect, holder=self)
        while not self._over:
            self._leave = trio.Event()
            watch = Watch()
            try:
                async with watched(self._settings, watch, alone=self._alone, connect=connect):
                    self.runs.append(watch)
                    self._opened.set()
                    await self._leave.wait()
            except AuthorizationError:
                # A server that reloads its configuration refuses clients in the middle of a handshake. A router that is
                # refused before its first link ends, and a process supervisor would start it again.
                continue
            self._count(self.live)
            if not self._over:
                self._spy.hands.left(self)
            self._left.set()

    def _count(self, live: Live) -> None:
        for route in live.routes:
            self.received += route.received
            self.routed += sum(route.routed.values())
            self.failed.update(route.failed)
