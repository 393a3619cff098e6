"""Who waits for a destination that refuses, until its share of the room has a place again."""

from __future__ import annotations

from collections.abc import Hashable

import trio

from router_trio.outbox.capacity import Capacity


class Shares:
    """All that wait for destinations of one connection: none for another's, and nobody else is held up by them."""

    def __init__(self, room: Capacity) -> None:
        self._room = room
        self.waiting: dict[Hashable, trio.lowlevel.ParkingLot] = {}
        """Destinations for which somebody waits."""

    async def wait(self, destination: Hashable) -> None:
        """Wait while this destination refuses and its share is used up, as long as waiting makes sense."""
        try:
            while self._room.waits_for(destination):
                await self.waiting.setdefault(destination, trio.lowlevel.ParkingLot()).park()
        finally:
            # One is woken at a time, and each wakes the next: also if it was woken and cancelled at once.
            waiting = self.waiting.get(destination)
            if waiting is not None:
                waiting.unpark()
                if not waiting:
                    del self.waiting[destination]

    def look(self) -> None:
        """Something was taken, refused or given up: there may be a place."""
        for destination, waiting in self.waiting.items():
            if not self._room.waits_for(destination):
                waiting.unpark()

    def wake_all(self) -> None:
        """The link came or went: all look again."""
        for waiting in self.waiting.values():
            waiting.unpark_all()
