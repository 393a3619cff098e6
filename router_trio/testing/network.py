"""The network between the fake links and the fake server: brings over what was sent, in time, unless it is paused."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import trio

from router_trio.errors import LinkError
from router_trio.testing.server import Server


class Endpoint(Protocol):
    """A link as the network sees it."""

    server: str

    def flush(self) -> None:
        """Deliver to the server what was sent long enough ago."""

    def next_arrival(self) -> float:
        """Return when something that is on its way arrives."""
        ...

    def break_after(self, to_server: int | None, from_server: int | None) -> None:
        """Break the connection behind so many bytes of what is on its way."""

    def wake(self) -> None:
        """Notify the link's task that something has changed."""

    def announce_lame_duck(self) -> None:
        """Announce that the server will shut down."""

    def announce_servers(self, servers: list[str]) -> None:
        """Tell the link which other servers are in the cluster."""

    def die(self, error: LinkError) -> None:
        """End the connection."""


def at_once() -> float:
    """Return the delay of everything, unless a test sets another one."""
    return 0.0


class Network:
    """The open links, whether anything gets through, and how long that takes.

    `travel` gives the seconds that something takes one way; what is behind it on the same link is no sooner there.
    """

    def __init__(self, server: Server, *, max_payload: int) -> None:
        self.server = server
        self.max_payload = max_payload
        self.travel: Callable[[], float] = at_once
        self.is_lame = False
        self.links: list[Endpoint] = []
        self._paused_until = -inf
        self._resumed = trio.Event()

    def pause(self, until: float) -> None:
        """Hold back everything in both directions until that time, or until `resume`."""
        self._paused_until = until
        self.wake_links()

    def resume(self) -> None:
        """Let what was held back go on."""
        self._paused_until = -inf
        self._resumed.set()
        self._resumed = trio.Event()
        self.wake_links()

    def flows(self) -> bool:
        """Return True if anything gets through now."""
        return trio.current_time() >= self._paused_until

    async def until_it_flows(self) -> None:
        """Returns when something gets through. Can be cancelled."""
        await trio.lowlevel.checkpoint()
        while not self.flows():
            with trio.move_on_at(self._paused_until):
                await self._resumed.wait()

    def settle(self) -> None:
        """Bring to the server what was sent, and let it do what is due."""
        if self.flows():
            for link in self.links.copy():
                link.flush()
        self.server.poll(trio.current_time())

    def next_due(self) -> float:
        """Return when `settle` has something to do if nothing else happens before."""
        due = self.server.next_due()
        if not self.flows():
            return min(due, self._paused_until)
        for link in self.links:
            due = min(due, link.next_arrival())
        return due

    def wake_links(self) -> None:
        """Let every link look at what has changed."""
        for link in self.links:
            link.wake()
