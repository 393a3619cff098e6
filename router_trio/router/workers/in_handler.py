"""Records in the shared block which messages are in handlers, so that if one of them ends its worker, it can be named.

A call costs two writes to the block. A suspected message (see `suspects`) is handled while no other one is, and after
the copies of earlier messages have been sent. If it has ended too many processes, it is not handled any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import wraps
from itertools import count
from typing import Any

import trio

from router_trio.errors import HandlerError, Reject
from router_trio.message import Message
from router_trio.router.workers.counts.block import LONGEST_SUBJECT, Block, InHandler, Place
from router_trio.router.workers.suspects import deaths_allowed, is_given_up
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.calls import Handler
from router_trio.settings import RouteSettings

LOOK_EVERY = 0.01
"""Seconds between two checks whether other calls have returned."""

ALONE_WITHIN = 30.0
"""Seconds that a message to be handled alone waits for other calls."""


class HandlerEndedProcesses(HandlerError):
    """A handler is not called with a message that has ended too many processes."""


class InHandlers:
    """The messages in the handlers of one worker."""

    def __init__(self, block: Block, survived: Callable[[InHandler], None]) -> None:
        """`survived` is called when a suspected message has been handled."""
        self._block = block
        self._survived = survived
        self._free: dict[str, list[Place]] = {}
        self._made: dict[str, int] = {}
        """Number of places of each route."""
        self._numbers = count(1)
        self._suspects: dict[InHandler, int] = {}
        self._to_be_alone = 0
        self._is_alone = False
        self._none_alone = trio.Event()
        """Set when no message is being handled alone or waits for that."""
        self._careful = False

    def suspect(self, table: Mapping[InHandler, int]) -> None:
        """Treat these messages as suspects, each with the number of processes that it has ended."""
        self._suspects = dict(table)
        self._update_careful()

    def forget_removed(self, routes: Collection[str]) -> None:
        """Free the places of all other routes. Those still handling messages keep them until the next call."""
        for name in [name for name, free in self._free.items() if name not in routes]:
            free = self._free[name]
            if len(free) == self._made.get(name, 0):
                for place in free:
                    place.give_back()
                free.clear()
                del self._free[name]
                self._made.pop(name, None)

    def around(self, route: RouteSettings, handler: Handler) -> Handler:
        """Return a wrapper of a route's handler that records the message of each call."""
        free = self._free.setdefault(route.name, [])

        def call(message: Message) -> Any:
            place = free.pop() if free else self._new_place(route.name)
            sequence = message[6]
            place.enter(-1 if sequence is None else sequence, message[0], message[8] or 0.0)
            awaited = False
            try:
                answer = handler(message)
                if answer is None or type(answer) is Message:
                    return answer
                if hasattr(answer, "__await__"):
                    awaited = True
                    return _awaited(answer, place, free)
                return answers_of(answer)  # a generator runs the handler's code, too
            finally:
                if not awaited:
                    place.leave()
                    free.append(place)

        @wraps(handler)
        def handle(message: Message) -> Any:
            if not self._careful:
                return call(message)
            return self._carefully(route, call, message)

        return handle

    # --- internals ---

    def _new_place(self, route: str) -> Place:
        self._made[route] = self._made.get(route, 0) + 1
        return Place(self._block, route, next(self._numbers))

    @property
    def _in_handlers(self) -> int:
        return sum(self._made.get(name, 0) - len(free) for name, free in self._free.items())

    def _update_careful(self) -> None:
        self._careful = bool(self._suspects or self._to_be_alone)

    def _carefully(self, route: RouteSettings, call: Handler, message: Message) -> Any:
        if message.sequence is not None:
            one = InHandler(route.name, _as_noted(message.subject), message.sequence, message.timestamp or 0.0)
            deaths = self._suspects.get(one)
            if deaths is not None:
                if deaths >= deaths_allowed(route):
                    text = f"{deaths} processes have ended while its handler had this message"
                    raise (
                        Reject(text) if is_given_up(route) else HandlerEndedProcesses(f"{text}; it is not called again")
                    )
                return self._alone(call, message, one)
        return self._behind(call, message) if self._to_be_alone else call(message)

    async def _alone(self, call: Handler, message: Message, one: InHandler) -> Any:
        if not self._to_be_alone:
            self._none_alone = trio.Event()
        self._to_be_alone += 1
        self._update_careful()
        was_alone = False
        try:
            with trio.move_on_after(ALONE_WITHIN):
                await trio.sleep(LOOK_EVERY)  # at least once, so that the copies of earlier messages are sent
                # Calls set no event when they return, since that would cost each of them.
                while self._in_handlers or self._is_alone:  # noqa: ASYNC110
                    await trio.sleep(LOOK_EVERY)
                self._is_alone = was_alone = True
            try:
                answer = await _answer(call, message)
            except Exception:
                self._survived(one)
                raise
            self._survived(one)
            return answer
        finally:
            self._is_alone = self._is_alone and not was_alone
            self._to_be_alone -= 1
            if not self._to_be_alone:
                self._none_alone.set()
            self._update_careful()

    async def _behind(self, call: Handler, message: Message) -> Any:
        with trio.move_on_after(ALONE_WITHIN):
            await self._none_alone.wait()
        return await _answer(call, message)


async def _awaited(answer: Awaitable[Any], place: Place, free: list[Place]) -> Any:
    try:
        found = await answer
        return found if found is None or type(found) is Message else answers_of(found)
    finally:
        place.leave()
        free.append(place)


async def _answer(call: Handler, message: Message) -> Any:
    answer = call(message)
    return await answer if hasattr(answer, "__await__") else answer


def _as_noted(subject: str) -> str:
    """Return a subject as it is recorded in the block."""
    return subject.encode("utf-8", "surrogatepass")[:LONGEST_SUBJECT].decode("utf-8", "replace")
