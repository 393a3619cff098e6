"""Decide when awaited messages are with another process, or were settled there. Pure: times are passed in.

A server does not say where a message is. It redelivers before it delivers anything new, in the order in which messages
became due. So a message that has long been due and does not come went elsewhere, once the server has shown that nothing
is left which became due so early: it delivered a new message, it had none for a request until that expired, or it
redelivered one for the second time, which became due again after it had come for the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from router_trio.routing.policy.failed_messages import MOST_REMEMBERED


class Elsewhere:
    """The awaited messages of one consumer that another process may have, and what shows that it has them."""

    __slots__ = ("_came_at", "_since", "_within", "none_due_before")

    def __init__(self, within: float) -> None:
        """`within`: seconds for which the server may deliver to a dead link that it considers alive."""
        self._within = within
        self._since: dict[int, float] = {}
        """The awaited messages that another process may have, by sequence, with the time since when."""
        self._came_at: dict[int, float] = {}
        """When messages were last redelivered, by sequence, while there are such. The oldest come first."""
        self.none_due_before: float = -inf
        """The server has redelivered everything that became due before this time. Set when it has nothing left."""

    def redelivered(self, sequences: Iterable[int], now: float) -> None:
        """Record redeliveries."""
        if not self._since:
            return
        for sequence in sequences:
            came_at = self._came_at.pop(sequence, None)
            if came_at is not None:
                self.none_due_before = max(self.none_due_before, came_at)
            elif len(self._came_at) >= MOST_REMEMBERED:
                del self._came_at[next(iter(self._came_at))]
            self._came_at[sequence] = now

    def among(self, awaited: Mapping[int, float], now: float, *, others: bool) -> list[int]:
        """Return which awaited messages went elsewhere. `awaited` are all of them, with the time when each is late.

        `others`: another process may have messages in hand. A message may be elsewhere from the first time when that is
        so while it is awaited.
        """
        before = self._since
        self._since = {one: before.get(one, now) for one in awaited if others or one in before}
        if not self._since:
            self._came_at.clear()
        return [
            one
            for one, since in before.items()
            if one in awaited and max(since, awaited[one]) + self._within <= self.none_due_before
        ]
