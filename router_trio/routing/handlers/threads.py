"""Handlers that are called in threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import trio

from router_trio.message import Message
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.asyncio_loop import InAsyncio
from router_trio.routing.handlers.calls import Handler


def in_thread(handler: Handler, most: int) -> Handler:
    """Return an async handler that calls this one in threads, at most `most` calls at a time.

    A thread can't be ended: a cancelled call is left behind, and its result is discarded.
    """
    return InThread(handler, most).call


class InThread:
    """A handler that is called in threads, at most `most` calls at a time."""

    def __init__(self, handler: Handler, most: int) -> None:
        self.__wrapped__: Handler = handler
        self._limiter = trio.CapacityLimiter(most)
        self.left_behind: set[object] = set()
        """Calls that were cancelled and have not returned."""

    async def call(self, message: Message) -> Sequence[Message]:
        """Call the handler in a thread and wait for its answers. Can be cancelled, which leaves the call behind."""
        this = object()

        def call() -> Sequence[Message]:
            try:
                return answers_of(self.__wrapped__(message))  # a generator runs in the thread as well
            finally:
                over.append(None)  # first: a task that is cancelled meanwhile either finds this, or is found below
                self.left_behind.discard(this)

        over: list[None] = []
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            self.left_behind.add(this)
            if over:
                self.left_behind.discard(this)  # it returned at the same time
            raise


def left_behind_by(handler: Handler | None) -> Collection[object]:
    """Return the calls of a handler that were left behind in threads or on the asyncio loop: a live set.

    It is empty for a handler that runs on Trio. A worker wraps its handlers.
    """
    owner = getattr(getattr(handler, "__wrapped__", handler), "__self__", None)
    return owner.left_behind if isinstance(owner, InThread | InAsyncio) else ()
