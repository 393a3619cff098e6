"""Ask for messages that a dead link or an earlier process did not settle, before anything new."""

from __future__ import annotations

import trio

from router_trio.link import PullConsumer
from router_trio.routing.stream.in_hand import StreamInHand

OVERDUE = 0.1
"""Seconds from the end of a nak's delay until the message is asked for: a server that has it not ready yet would give
a new one instead."""


async def ask_again(consumer: PullConsumer, pending: StreamInHand, within: float) -> float:
    """Have what the lost link did not deliver delivered again: so it keeps its order, and comes without the ack wait.

    Where it can't be known which messages that are, or whether somebody else has them, and where the server takes no
    note of that, it comes after the ack wait, and nothing may be asked for before: returns until when. `within`: see
    `StreamCursor.opened`. Blocks for some seconds at most. Raises `LinkError` if the link dies.
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
