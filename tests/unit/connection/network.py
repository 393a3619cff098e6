"""A fake network, whose servers accept, refuse or ignore connections, and a router on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import trio
import trio.testing

from router_trio import Live, Settings
from router_trio.errors import LinkError, PublishError
from router_trio.link import Link, LinkListener
from router_trio.testing import FakeBroker
from tests.support.settings import settings
from tests.support.watch import Watch, watched

A, B, C = "nats://a:4222", "nats://b:4222", "nats://c:4222"


class Network:
    """A fake broker behind the name of every server, and trouble on the way to some of them.

    A server in `brokers` has its own broker.
    """

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.brokers: dict[str, FakeBroker] = {}
        self.trouble: dict[str, LinkError] = {}
        self.delays: dict[str, float] = {}
        self.lame_ducks = False
        self.dials: list[tuple[float, str]] = []
        self.most_links = 0

    @asynccontextmanager
    async def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
        """Connect to a server of this network, or fail as configured."""
        self.dials.append((trio.current_time(), server))
        if server in self.trouble:
            raise self.trouble[server]
        await trio.sleep(self.delays.get(server, 0.0))
        async with self.brokers.get(server, self.broker).connect(server, inbox, listener) as link:
            self.most_links = max(self.most_links, self.broker.links)
            async with trio.open_nursery() as nursery:
                if self.lame_ducks:
                    nursery.start_soon(self._soon_a_lame_duck, listener)
                yield link
                nursery.cancel_scope.cancel()

    async def _soon_a_lame_duck(self, listener: LinkListener) -> None:
        await trio.sleep(0.001)
        listener.lame_duck()

    def take_down(self) -> None:
        """Stop every server from answering, and break the links."""
        self.broker.down()

    @property
    def dialled(self) -> list[str]:
        """Return which server each attempt was for."""
        return [server for _, server in self.dials]

    @property
    def pauses(self) -> list[float]:
        """Return the seconds between the attempts."""
        return [round(later - earlier, 6) for (earlier, _), (later, _) in pairwise(self.dials)]


def patient(url: str | list[str] = A, **connection: Any) -> Settings:
    """Return settings with the delays of a real configuration."""
    usual = {"reconnect_delay": "1s", "max_reconnect_delay": "30s", "liveness_interval": "5s"}
    return settings(url, **{**usual, **connection})


@asynccontextmanager
async def opened(network: Network, config: Settings, **options: Any) -> AsyncIterator[tuple[Watch, Live]]:
    """Open a router on this network, with its events recorded."""
    async with watched(config, connect=lambda name, one: network.connect, **options) as watch:
        assert watch.live is not None
        yield watch, watch.live


async def in_background(nursery: trio.Nursery, job: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Start `job`, and let it run until it waits for the clock. The returned list will hold its result or error."""
    results: list[Any] = []

    async def run() -> None:
        try:
            results.append(await job())
        except PublishError as error:
            results.append(error)

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return results
