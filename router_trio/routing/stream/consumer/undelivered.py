"""Request messages that a dead link or an earlier process did not settle, before new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from router_trio.errors import SourceError, reasons
from router_trio.link import PullConsumer
from router_trio.routing.stream.in_hand import StreamInHand

OVERDUE = 0.1
"""Seconds from the end of a nak's delay until the message is requested: a server that does not have it ready yet would
deliver a new one instead."""

LOOKED_UP_EVERY = 1.0
"""Seconds between two lookups of an ack wait while these fail."""


@dataclass(frozen=True, slots=True)
class Redeliveries:
    """The messages of an earlier link or process that may be redelivered to a consumer that was opened."""

    not_before: float
    """The time from which on messages may be requested."""
    requested: Sequence[int]
    """Their sequences if they were requested again, in order; empty if they are unknown."""
    expected: bool
    """True if unknown messages may be redelivered, also if none were requested."""


async def ask_again(consumer: PullConsumer, pending: StreamInHand, within: float) -> Redeliveries:
    """Have messages redelivered that a lost link did not deliver, so that they keep their order and need no ack wait.

    If these messages are unknown, if another process may have them, or if the server does not confirm the request, they
    are redelivered after the ack wait, and nothing may be requested before. `within`: see `StreamCursor.opened`. Blocks
    for some seconds at most. Raises `LinkError` if the link dies.
    """
    progress, opened_at = consumer.progress, trio.current_time()
    cursor, others = pending.cursor, pending.others
    first, take = cursor.unseen_from, others.take(opened_at)
    in_use = take or progress.in_use is not False
    others_seen = take or others.noticed
    alone = cursor.opened(progress.deliveries, opened_at, within, in_use=in_use, others_seen=others_seen)
    others.opened(heard=not alone and progress.in_use is True)
    if alone:
        unacked = await consumer.unacked(first)
        if unacked is not None:
            missing = [sequence for sequence in unacked if not cursor.knows(sequence)]
            if not missing or await consumer.again(missing):
                return Redeliveries(opened_at, missing, bool(missing))
    elif progress.in_use is not None:
        return Redeliveries(opened_at, (), expected=False)  # with other processes there is no order to keep
    return Redeliveries(opened_at + consumer.ack_wait + OVERDUE, (), expected=True)


async def wait_for_redeliveries(
    consumer: PullConsumer,
    until: float,
    postponed: Callable[[float], None],
    lifted: Callable[[Sequence[str]], None],
) -> None:
    """Wait until new messages may be requested, which is first expected at `until`, a result of `ask_again`.

    The ack wait may be edited meanwhile, and holds for delivered messages as well. So it is looked up when it should be
    over. `postponed` is called with each later time, `lifted` with limits that a lookup has removed. If this user may
    not look it up, or the consumer is gone, the last known ack wait counts. Can be cancelled. Raises `LinkError` if the
    link dies.
    """
    expected, ack_wait = until, consumer.ack_wait
    while True:
        await trio.sleep_until(until)
        try:
            state = await consumer.check()
        except SourceError as error:
            if error.reason == reasons.PERMISSION_DENIED or error.reason not in reasons.LOOKUP_FAILED:
                return
            until = trio.current_time() + LOOKED_UP_EVERY
        else:
            if state.lifted:
                lifted(state.lifted)
            until = expected + (state.ack_wait - ack_wait)
            if until <= trio.current_time():
                return
        postponed(until)
