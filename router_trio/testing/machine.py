"""A machine on which routers run: the faults of its links to the fake broker, beside those of the whole network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from math import inf

import trio

from router_trio.errors import LinkError, reasons
from router_trio.link import Link, LinkListener
from router_trio.testing.network import Network

Open = Callable[["Machine", str, bytes, LinkListener], AbstractAsyncContextManager[Link]]


class Machine:
    """A machine with faults of its own. `connect` is a `link.Connect`, whose links have the faults of this machine.

    All methods except `connect` are synchronous and take effect immediately. Those that need the current time must be
    called inside `trio.run`.
    """

    def __init__(self, network: Network, open_link: Open) -> None:
        """Use `FakeBroker.machine` for another machine of a broker."""
        self._network = network
        self._open_link = open_link
        self._travel: Callable[[], float] | None = None
        self._held_until = {"to_server": -inf, "from_server": -inf}
        self.half_open: bool = False
        """True while the server treats links of this machine that die as open: their pull requests still get messages.
        """
        self.sends_on: bool = False
        """True if what a link has sent still arrives after it was closed, or its process killed, as over TCP.

        The server notices the end of the link behind it.
        """

    def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
        """Connect from this machine, as `FakeBroker.connect` does. Blocks while data is held in either direction."""
        return self._open_link(self, server, inbox, listener)

    # --- faults ---

    def cut(self) -> None:
        """Break the links of this machine. Reconnecting works."""
        for link in self._network.links.copy():
            if link.machine is self:
                link.die(LinkError("the connection was cut"))

    def kill(self) -> None:
        """End the links of this machine as if their processes were killed."""
        for link in self._network.links.copy():
            if link.machine is self:
                link.die(LinkError("the process was killed", reason=reasons.CLOSED))

    def travel(self, seconds: Callable[[], float] | None) -> None:
        """Set the delay of each item, each way, to the result of a call of `seconds`; None for that of the network."""
        self._travel = seconds

    def hold(self, *, to_server: bool = False, from_server: bool = False) -> None:
        """Silently hold back all data in these directions until `release`. Links stay open."""
        for direction, is_held in (("to_server", to_server), ("from_server", from_server)):
            if is_held:
                self._held_until[direction] = inf
        self._network.wake_links()

    def release(self) -> None:
        """End `hold`. What was held back is delivered now, as over TCP."""
        self._held_until = dict.fromkeys(self._held_until, -inf)
        self._network.resumed()

    # --- for links ---

    def delay(self) -> float:
        """Return the delay of the next item in seconds, one way."""
        return (self._travel or self._network.travel)()

    def receives(self) -> bool:
        """Return True if data of the server arrives."""
        return self._network.flows() and trio.current_time() >= self._held_until["from_server"]

    def sends(self) -> bool:
        """Return True if data arrives at the server."""
        return self._network.flows() and trio.current_time() >= self._held_until["to_server"]

    def due(self, arrival: float, direction: str) -> float:
        """Return when an item that travels until `arrival` can be delivered."""
        return max(arrival, self._held_until[direction], self._network.paused_until)

    async def until_it_flows(self) -> None:
        """Wait until nothing is held back. Can be cancelled."""
        await self._network.until_it_flows()
        while not (self.sends() and self.receives()):
            await self._network.until_resumed()
