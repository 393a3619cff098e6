"""Whether another process has messages of a consumer in hand. Its answers are heard, and nothing else tells.

A process whose hands are full waits for no messages, and may ack nothing for long. Every route that has messages in
hand says again and again that it is at work (`link.SIGN_OF_WORK_EVERY`), at a subject where anybody may listen who has
the permission.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from router_trio.errors import SourceError
from router_trio.link import LISTEN_FOR, ConsumerSpec, Deliver, Subscription
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage

Subscribe = Callable[[str, Deliver], Awaitable[Subscription]]


async def others_answer(subscribe: Subscribe, spec: ConsumerSpec) -> bool | None:
    """Return True if somebody answers deliveries of a consumer; None if this user may not listen.

    Blocks for `LISTEN_FOR` seconds at most. Can be cancelled.
    """
    heard = trio.Event()

    def hear(batch: list[RawMessage]) -> None:
        heard.set()

    try:
        older_form, newer_form = ack_reply.subscriptions(spec.stream, spec.durable)
        answers = await subscribe(older_form, hear)
        try:
            of_domain = await subscribe(newer_form, hear)
            try:
                with trio.move_on_after(LISTEN_FOR):
                    await heard.wait()
            finally:
                of_domain.close()
        finally:
            answers.close()
    except SourceError:
        return None
    return heard.is_set()
