"""Looks at a consumer, every few seconds: whether it is still what the route wants, and whether it delivers.

That it was deleted is told to whoever has asked it for messages. That somebody has edited or paused it is not, nor that
nothing new comes since too much has no ack.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from router_trio.errors import SourceError
from router_trio.link import LOOKUP_FAILED, ConsumerState, PullConsumer
from router_trio.routing.stream.ack_pending import AckPending
from router_trio.routing.stream.consumer.standstill import standstill
from router_trio.routing.stream.pulling.payloads import Payloads

CHECK_EVERY = 5.0
"""Seconds between two looks at what the consumer is on the server."""

DENIED_CHECK_EVERY = 60.0
"""The same while this user may not ask: a server logs each of these."""


class ConsumerChecks:
    """The looks at one route's consumer. `lost` is told of an edit after which it is of no use any more.

    `changed` is called when `stopped` has changed.
    """

    def __init__(
        self,
        pending: AckPending,
        payloads: Payloads,
        *,
        lost: Callable[[SourceError], None],
        changed: Callable[[], None],
    ) -> None:
        self.stopped: str | None = None
        """Why the consumer delivers nothing new, None if it does."""
        self._pending = pending
        self._payloads = payloads
        self._lost = lost
        self._changed = changed
        self._now = trio.Event()
        self._before: ConsumerState | None = None

    def look_anew(self) -> None:
        """There is no consumer, or another one."""
        self.stopped = self._before = None

    def check_now(self) -> None:
        """Look at the consumer now, and not when it is time."""
        self._now.set()

    async def run(self, consumer: PullConsumer) -> None:
        """Look again and again. Returns when the consumer is lost."""
        while True:
            pause = CHECK_EVERY
            self._now = trio.Event()
            doubtful = len(self._payloads.doubtful)
            try:
                state = await consumer.check()
            except SourceError as error:
                if error.reason not in LOOKUP_FAILED and error.reason != "consumer_not_found":
                    self._lost(error)
                    return
                if error.reason == "permission_denied" and not doubtful:
                    pause = DENIED_CHECK_EVERY
            else:
                self._compare(state)
                again = self._payloads.confirm(doubtful)
                if again:
                    await consumer.again(again)
            with trio.move_on_after(pause):
                await self._now.wait()

    def _compare(self, state: ConsumerState) -> None:
        pending = self._pending
        stopped = state.paused or standstill(self._before, state, pending.cursor, len(pending.open))
        self._before = state
        if stopped != self.stopped:
            self.stopped = stopped
            self._changed()
