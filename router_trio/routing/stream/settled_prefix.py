"""Which message is acked where one ack is for all before it: the last of the longest settled prefix. Pure.

For durables with the ack policy `all`. What is not settled, or may have been delivered and has not come, ends the
prefix; what is settled behind it waits, and its stream delivers it again meanwhile: each time after twice as long, so
that it leaves room for what is new.
"""

from __future__ import annotations

from collections.abc import Iterable

from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import StreamDelivery

LONGEST_WAIT = 600.0
"""Seconds between two deliveries of a message that is settled and has no ack, unless the ack wait is longer."""


class SettledPrefix:
    """What is settled of one incarnation of a stream and has no ack."""

    def __init__(self) -> None:
        self._unacked: dict[int, bytes] = {}
        self._end = 0

    def to_ack(self, deliveries: Iterable[StreamDelivery], cursor: StreamCursor, now: float) -> list[bytes]:
        """These are settled, of the stream as `cursor` has it. Return where to ack all that the ack is for, or nothing.

        Nothing is acked while others are seen to take from the durable: it would be for their messages as well.
        """
        unacked = self._unacked
        new = {one.sequence: one.ack_subject for one in deliveries if one.cursor is cursor}
        unacked.update(new)
        if cursor.shared:
            self._end = 0
            return []
        end, before = cursor.settled_before(now), self._end
        self._end = end
        # Many may wait behind one that fails again and again: they are looked at when the end of the prefix moves.
        last = max((sequence for sequence in (unacked if end > before else new) if sequence < end), default=0)
        if not last:
            return []
        subject = unacked[last]
        self._unacked = {sequence: one for sequence, one in unacked.items() if sequence > last}
        return [subject]

    def come_later(self, deliveries: Iterable[StreamDelivery], ack_wait: float) -> Iterable[tuple[bytes, float]]:
        """These were settled, and came again. Give where to nak those that still have no ack, and for how long."""
        longest = max(LONGEST_WAIT, ack_wait)
        for one in deliveries:
            if one.sequence in self._unacked:
                yield one.ack_subject, min(ack_wait * 2.0 ** min(one.deliveries - 1, 32), longest)

    def forget_all(self) -> None:
        """The stream is another one."""
        self._unacked.clear()
        self._end = 0
