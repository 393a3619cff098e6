"""The machine of one process of a router, as each broker sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from router_trio.link import Connect, Link, LinkListener
from router_trio.settings import ConnectionSettings
from router_trio.testing import FakeBroker


class Machines:
    """Connects a process to the brokers until it is killed."""

    def __init__(self, brokers: Mapping[str, FakeBroker], *, sends_on: bool) -> None:
        """`sends_on`: what was sent still arrives after the process was killed, see `Machine`."""
        self._machines = {name: broker.machine() for name, broker in brokers.items()}
        self._killed = False
        for machine in self._machines.values():
            machine.sends_on = sends_on

    def connect(self, name: str, _: ConnectionSettings) -> Connect:
        """Return what connects to a broker, for `Router(connect=...)`. After the kill that waits for ever."""
        machine = self._machines[name]

        @asynccontextmanager
        async def connecting(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[Link]:
            if self._killed:
                await trio.sleep_forever()
            async with machine.connect(server, inbox, listener) as link:
                yield link

        return connecting

    def kill(self) -> None:
        """Cut all links, so that nothing that the process does from now on has an effect."""
        for machine in self._machines.values():
            machine.kill()
        self._killed = True
