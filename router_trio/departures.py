"""What routes forward to one outbox while a link hands out what came at one time: offered together, when that is over.

With a thousand routes of which each got one message, the outbox is asked once, as with one route that got a thousand.
Synchronous and pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import itemgetter

from router_trio.operation import Owner
from router_trio.outbox import Outbox

_count = itemgetter(1)


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

    def single_out(self, indexes: Sequence[int], replaced: Callable[[Owner, bytes], tuple[Owner, bytes]]) -> None:
        """Put other frames with owners of their own in the places of some: of each, `replaced` is told owner and frame.

        `indexes` are in order.
        """
        if not indexes:
            return
        frames, owners = self.frames, self.owners
        ends = [*accumulate(map(_count, owners))]
        # From the last one on, so that the places before it stay what they are.
        for index in reversed(indexes):
            run = bisect_right(ends, index)
            owner, count = owners[run]
            before, after = index - ends[run] + count, ends[run] - index - 1
            own, frames[index] = replaced(owner, frames[index])
            cut = [(owner, before), (own, 1), (owner, after)]
            owners[run : run + 1] = [one for one in cut if one[1]]
            ends[run] = index

    def leave(self) -> None:
        """Offer what is here to the outbox."""
        self._outbox.offer_frames(self.frames, self.owners)
        self.frames.clear()
        self.owners.clear()
