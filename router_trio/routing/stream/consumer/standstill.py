"""When a durable delivers nothing new, since what failed takes up all that may be without an ack. Pure.

The server delivers at most `max_ack_pending` messages that have no ack. What failed and waits for its next attempt is
among them.
"""

from __future__ import annotations

from router_trio.link import ConsumerState
from router_trio.routing.stream.cursor import StreamCursor


def standstill(before: ConsumerState | None, now: ConsumerState, cursor: StreamCursor, in_hand: int) -> str | None:
    """Return why the consumer would deliver nothing new, None if it has since the look before, or others are the cause.

    `in_hand`: how many messages are worked on here. If those are half of what has no ack, they are waited for.
    """
    moved = before is None or before.delivered != now.delivered
    if moved or not 0 < now.max_ack_pending <= now.unacked:
        return None
    if cursor.unsettled <= in_hand or 2 * in_hand >= now.unacked:
        return None
    first = cursor.start
    attempts = cursor.failures.attempts(first)
    tried = f"has failed {attempts} times" if attempts > 1 else "failed" if attempts else "is to be redelivered"
    return (
        f"{now.unacked} messages have no ack, and the consumer may have {now.max_ack_pending} (max_ack_pending): "
        f"nothing new is delivered, {now.undelivered} wait in the stream; "
        f"message {first}, the first without an ack, {tried}"
    )
