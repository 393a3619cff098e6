"""Looks up the oldest message of a consumer that is not acked or not delivered, whose time the server does not report.

It is the first message behind the ack floor that the consumer's filters match. An answer contains an entire message, so
it is kept while the floor stands still, unless the consumer has fewer messages left than before: the oldest may then
have been deleted.
"""

from __future__ import annotations

from math import inf

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import ConsumerSpec, StoredAt
from router_trio.nats.jetstream.api import NOT_FOUND, Api, ApiError, ConsumerInfo, NoResponders, nanoseconds
from router_trio.nats.jetstream.streams import look_up

KEPT_FOR = 30.0
"""Seconds after which an answer is looked up again, although nothing indicates that the message was deleted."""

DENIED_FOR = 60.0
"""Seconds without a lookup after this user was denied one: a server logs each denial."""

MOST_FILTERS = 16
"""Filters of a consumer, with one request for each. With more the oldest message is not looked up."""


class OldestMessage:
    """The oldest message of one consumer that is not acked or not delivered."""

    def __init__(self, api: Api, spec: ConsumerSpec, at_a_time: trio.CapacityLimiter) -> None:
        """`at_a_time` limits the concurrent requests of the link."""
        self._api = api
        self._stream = spec.stream
        self._filters = spec.filters or (">",)
        self._at_a_time = at_a_time
        self._found: StoredAt | None = None
        self._floor = -1
        self._left = 0
        self._looked_up_at = -inf
        self._not_before = -inf

    async def find(self, info: ConsumerInfo) -> StoredAt | None:
        """Return the message; None if there is none, or it can't be looked up. `info` is the current state.

        Blocks for at most two seconds after a round trip, for each filter. Can be cancelled.
        """
        left, floor, now = info.num_pending + info.num_ack_pending, info.ack_floor.sequence, trio.current_time()
        if not left or len(self._filters) > MOST_FILTERS or now < self._not_before:
            return None
        if floor == self._floor and left >= self._left and now < self._looked_up_at + KEPT_FOR:
            self._left = left
            return self._found
        try:
            self._found = await self._look_up(floor + 1)
        except SourceError as error:
            if error.reason == reasons.PERMISSION_DENIED:
                self._not_before = now + DENIED_FOR
            return None
        except (ApiError, TimeoutError, NoResponders):
            return None
        self._floor, self._left, self._looked_up_at = floor, left, now
        return self._found

    async def _look_up(self, first: int) -> StoredAt | None:
        found: list[StoredAt] = []
        for one in self._filters:
            async with self._at_a_time:
                try:
                    stored = await look_up(self._api, self._stream, {"seq": first, "next_by_subj": one})
                except ApiError as error:
                    if error.code != NOT_FOUND:
                        raise
                    continue
            found.append(StoredAt(stored.sequence, nanoseconds(stored.time)))
        return min(found, default=None)
