"""Which message is acked where one ack is for all before it: the last of the longest settled prefix. Pure.

For durables with the ack policy `all`. What is not settled, or may have been delivered and has not come, ends the
prefix; what is settled behind it waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.delivery import StreamDelivery


class SettledPrefix:
    """What is settled of one incarnation of a stream and has no ack."""

    def __init__(self) -> None:
        self._unacked: dict[int, bytes] = {}

    def to_ack(self, deliveries: Iterable[StreamDelivery], cursor: StreamCursor, now: float) -> Sequence[bytes]:
        """These are settled, of the stream as `cursor` has it. Return where to ack all that the ack is for, or nothing.

        Nothing is acked while others are seen to take from the durable: it would be for their messages as well.
        """
        unacked = self._unacked
        unacked.update((one.sequence, one.ack_subject) for one in deliveries if one.cursor is cursor)
        if cursor.shared:
            return ()
        end = cursor.settled_before(now)
        last = max((sequence for sequence in unacked if sequence < end), default=0)
        if not last:
            return ()
        subject = unacked[last]
        self._unacked = {sequence: one for sequence, one in unacked.items() if sequence > last}
        return (subject,)

    def forget_all(self) -> None:
        """The stream is another one."""
        self._unacked.clear()
