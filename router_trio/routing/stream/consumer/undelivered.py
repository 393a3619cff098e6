"""Request messages that a dead link or an earlier process did not settle, before new ones."""

from __future__ import annotations

import trio

from router_trio.link import PullConsumer
from router_trio.routing.stream.in_hand import StreamInHand

OVERDUE = 0.1
"""Seconds from the end of a nak's delay until the message is requested: a server that does not have it ready yet would
deliver a new one instead."""


async def ask_again(consumer: PullConsumer, pending: StreamInHand, within: float) -> float:
    """Have messages redelivered that a lost link did not deliver, so that they keep their order and need no ack wait.

    If these messages are unknown, if another process may have them, or if the server does not confirm the request, they
    are redelivered after the ack wait, and nothing may be requested before. Returns the time from which on messages may
    be requested. `within`: see `StreamCursor.opened`. Blocks for some seconds at most. Raises `LinkError` if the link
    dies.
    """
    progress, opened_at = consumer.progress, trio.current_time()
    cursor, others = pending.cursor, pending.others
    first, take = cursor.unseen_from, others.take(opened_at)
    in_use = take or progress.in_use is not False
    others_seen = take or others.noticed
    others.opened()
    if cursor.opened(progress.deliveries, opened_at, within, in_use=in_use, others_seen=others_seen):
        unacked = await consumer.unacked(first)
        if unacked is not None:
            missing = [sequence for sequence in unacked if not cursor.knows(sequence)]
            if not missing or await consumer.again(missing):
                return opened_at
    elif progress.in_use is not None:
        return opened_at
    return opened_at + consumer.ack_wait + OVERDUE
