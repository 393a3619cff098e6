"""What routes forward to one outbox while a link hands out what came at one time: offered together, when that is over.

With a thousand routes of which each got one message, the outbox is asked once, as with one route that got a thousand.
Synchronous and pure.
"""

from __future__ import annotations

from router_trio.operation import Owner
from router_trio.outbox import Outbox


class Departures:
    """Core publishes that wait until all that came with them is handed out. `owners` go by runs of `frames`.

    The first to add something looks whether the outbox is `crowded`, and then all that came is taken. It also sees to
    it that `leave` is called before anything else happens. Both lists stay the same ones.
    """

    __slots__ = ("_outbox", "frames", "owners")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.frames: list[bytes] = []
        self.owners: list[tuple[Owner, int]] = []

    def leave(self) -> None:
        """Offer what is here to the outbox."""
        self._outbox.offer_frames(self.frames, self.owners)
        self.frames.clear()
        self.owners.clear()
