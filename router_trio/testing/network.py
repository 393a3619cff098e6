"""The network between the fake links and the fake server. It delivers everything in time, unless it is paused."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import trio

from router_trio.errors import LinkError
from router_trio.testing.server import Server


class Endpoint(Protocol):
    """The part of a link that the network uses."""

    server: str

    @property
    def machine(self) -> object:
        """The `machine.Machine` on which it was opened."""
        ...

    def flush(self) -> None:
        """Deliver everything to the server that has arrived by now."""

    def next_arrival(self) -> float:
        """Return the time at which the next item arrives at the server, or infinity."""
        ...

    def break_after(self, to_server: int | None, from_server: int | None) -> None:
        """Break the connection after this number of further items in each direction; None for no limit."""

    def wake(self) -> None:
        """Notify the link's task that something has changed."""

    def announce_lame_duck(self) -> None:
        """Announce that the server will shut down."""

    def announce_servers(self, servers: list[str]) -> None:
        """Announce the other servers of the cluster."""

    def die(self, error: LinkError) -> None:
        """End the connection."""


class Departed(Protocol):
    """The requests and messages that a link had sent before it ended."""

    def flushed(self) -> bool:
        """Deliver everything to the server that has arrived by now. Return True if nothing is left."""
        ...

    def next_arrival(self) -> float:
        """Return the time at which the next item arrives, or infinity."""
        ...


def at_once() -> float:
    """Return the default delay, 0 seconds."""
    return 0.0


class Network:
    """The open links, and the delay and the state of the network between them and the server.

    `travel` returns the delay of an item in seconds, one way. Items of the same link never overtake each other.
    """

    def __init__(self, server: Server, *, max_payload: int) -> None:
        self.server = server
        self.max_payload = max_payload
        self.travel: Callable[[], float] = at_once
        self.is_lame = False
        self.links: list[Endpoint] = []
        self.departed: list[Departed] = []
        """The rest of links that have ended: sent, and not received by the server."""
        self.paused_until: float = -inf
        """Until then, nothing is delivered in either direction."""
        self._resumed = trio.Event()

    def pause(self, until: float) -> None:
        """Hold back everything in both directions until that time, or until `resume`."""
        self.paused_until = until
        self.wake_links()

    def resume(self) -> None:
        """Deliver again, including everything that was held back."""
        self.paused_until = -inf
        self.resumed()

    def resumed(self) -> None:
        """Notify all who wait that data may be delivered again."""
        self._resumed.set()
        self._resumed = trio.Event()
        self.wake_links()

    async def until_resumed(self) -> None:
        """Wait until data may be delivered again. Can be cancelled."""
        await self._resumed.wait()

    def flows(self) -> bool:
        """Return True if the network is not paused."""
        return trio.current_time() >= self.paused_until

    async def until_it_flows(self) -> None:
        """Wait until the network is not paused. Can be cancelled."""
        await trio.lowlevel.checkpoint()
        while not self.flows():
            with trio.move_on_at(self.paused_until):
                await self._resumed.wait()

    def settle(self) -> None:
        """Deliver everything that has arrived to the server, and let the server do what is due."""
        if self.flows():
            for link in self.links.copy():
                link.flush()
            if self.departed:
                self.departed = [one for one in self.departed if not one.flushed()]
        self.server.poll(trio.current_time())

    def next_due(self) -> float:
        """Return the next time at which `settle` has something to do, unless something else happens before."""
        due = self.server.next_due()
        if not self.flows():
            return min(due, self.paused_until)
        for link in self.links:
            due = min(due, link.next_arrival())
        for departed in self.departed:
            due = min(due, departed.next_arrival())
        return due

    def wake_links(self) -> None:
        """Notify the task of every link that something has changed."""
        for link in self.links:
            link.wake()
