"""Finds the unacked messages of a consumer: the server only reports the range of their sequences.

In a stream with filters most messages of the range may not be the consumer's. They are skipped by requesting the next
message that a filter matches, again and again, from a few places at a time. But a consumer ignores naks of messages
that are acked, or are not its own. So where many are unacked, as after a server that had lost the consumer's position,
the entire range is returned, up to a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from router_trio.errors import SourceError
from router_trio.nats.jetstream.api import NOT_FOUND, Api, ApiError, NoResponders
from router_trio.nats.jetstream.streams import look_up

MOST = 16_384
"""Messages: four times what a route without `max_in_flight` leaves unacked. More are left to the ack wait."""

FEW = 256
"""Unacked messages that are searched for: beyond that, a search takes longer than returning the entire range."""

PARTS = 4
"""Places from which one route searches at the same time."""

AT_A_TIME = 8
"""Concurrent requests on one link, of all its routes: each answer contains an entire message."""

WITHIN = 3.0
"""Seconds for all requests."""

SOON = 0.5
"""Seconds for all requests where the entire range can be returned instead."""


async def find_between(
    api: Api,
    stream: str,
    filters: Sequence[str],
    sequences: range,
    unacked: int,
    at_a_time: trio.CapacityLimiter,
) -> list[int] | None:
    """Return the messages that the filters match, in order; None if there are too many, or it takes too long.

    If `unacked` shows that at least half of `sequences` match, or the matching ones can't be found soon, the entire
    range is returned unless it is too long. Blocks for `WITHIN` seconds at most. Can be cancelled.
    """
    all_of_them = list(sequences) if len(sequences) <= MOST else None
    if len(sequences) <= 2 * unacked or not filters or ">" in filters or (all_of_them and unacked > FEW):
        return all_of_them
    search = _Search(api, stream, at_a_time)
    part = -(-len(sequences) // PARTS)
    with trio.move_on_after(WITHIN if all_of_them is None else SOON) as scope:
        async with trio.open_nursery() as nursery:
            for start in range(0, len(sequences), part):
                for one in filters:
                    nursery.start_soon(search.look_through, one, sequences[start : start + part], nursery.cancel_scope)
    return all_of_them if scope.cancelled_caught or search.failed else sorted(search.found)


class _Search:
    def __init__(self, api: Api, stream: str, at_a_time: trio.CapacityLimiter) -> None:
        self.found: list[int] = []
        self.failed = False
        self._api = api
        self._stream = stream
        self._at_a_time = at_a_time

    async def look_through(self, wanted: str, sequences: range, all_parts: trio.CancelScope) -> None:
        """Find the messages that one filter matches in one part. The first failure ends all parts."""
        sequence = sequences.start
        try:
            while sequence < sequences.stop and not self.failed:
                which = {"seq": sequence, "next_by_subj": wanted}
                async with self._at_a_time:
                    found = (await look_up(self._api, self._stream, which)).sequence
                if not sequence <= found < sequences.stop:
                    return
                self.found.append(found)
                self.failed = len(self.found) > MOST
                sequence = found + 1
        except ApiError as error:
            self.failed |= error.code != NOT_FOUND
        except (SourceError, TimeoutError, NoResponders):
            self.failed = True
        if self.failed:
            all_parts.cancel()
