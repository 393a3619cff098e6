"""Lets publishers to a destination that refuses wait until its share of the room has space again."""

from __future__ import annotations

from collections.abc import Hashable

import trio

from router_trio.outbox.capacity import Capacity


class Shares:
    """Let publishers wait for their own destination without holding up publishers to another one."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.waiting: dict[Hashable, trio.lowlevel.ParkingLot] = {}
        """Waiting publishers, by destination."""

    def is_used_up(self, destination: Hashable) -> bool:
        """Return True while this destination refuses, its share is used up, and it makes sense to wait."""
        return self._capacity.waits_for(destination)

    async def wait(self, destination: Hashable) -> None:
        """Wait while the share of this destination `is_used_up`."""
        try:
            while self.is_used_up(destination):
                await self.waiting.setdefault(destination, trio.lowlevel.ParkingLot()).park()
        finally:
            # Publishers are woken one at a time and each wakes the next, even if it was cancelled when it was woken.
            waiting = self.waiting.get(destination)
            if waiting is not None:
                waiting.unpark()
                if not waiting:
                    del self.waiting[destination]

    def look(self) -> None:
        """Wake publishers that may have room: something was accepted, refused or given up."""
        for destination, waiting in self.waiting.items():
            if not self.is_used_up(destination):
                waiting.unpark()

    def wake_all(self) -> None:
        """Wake all publishers: the connection was established or lost."""
        for waiting in self.waiting.values():
            waiting.unpark_all()
