"""Handlers of drawn routes, of every kind. Each records its result for a message."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from router_trio import Message, Reject, Retry

PASSED, SEVERAL, FILTERED, RAISED = "passed", "several", "filtered", "raised"


FAILS_EVERY = {"poison": 3, "raises once": 5, "slow and fails": 5}
"""Which messages fail with an error in the handlers of these names, each time or the first time only."""

Sleep = Callable[[float], Awaitable[object]]
"""Sleeps for some seconds, on the loop on which a handler runs."""

SLEEP: dict[str, Sleep] = {"trio": trio.sleep, "asyncio": asyncio.sleep}

ASYNC = ("async", "takes long", "rejects", "slow", "slow and fails")
"""Kinds that run on asyncio in some schedules."""

LONG_EVERY, LONG = 40, 3.0
"""Which messages take long in the handler of that name, and for how many seconds."""


class Handled:
    """The last result of each route's handler for each message, and how often it raised."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, int], str] = {}
        self.raised: defaultdict[tuple[str, int], int] = defaultdict(int)

    def note(self, route: str, message: Message, outcome: str) -> int:
        """Record a result; return the number of the message."""
        number = number_of(message.payload)
        self.last[route, number] = outcome
        self.raised[route, number] += outcome == RAISED
        return number


def number_of(payload: bytes) -> int:
    """Return the number of a message, or of the one from which it was made; -1 if it has lost its number."""
    digits = payload.partition(b"/")[0].partition(b" ")[0]
    return int(digits) if digits.isdigit() else -1


def part_of(payload: bytes) -> int:
    """Return the index of a part, where a handler returns several."""
    return int(payload.rpartition(b"/")[2].partition(b" ")[0]) if b"/" in payload else 0


def _sync(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> Message:
        handled.note(route, message, PASSED)
        return message

    return handler


def _async(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    async def handler(message: Message) -> Message:
        number = number_of(message.payload)
        if number % 3 == 0:
            await sleep(0.05 * (number % 4))
        handled.note(route, message, PASSED)
        return message.replace(payload=message.payload + b" handled")

    return handler


def _several(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> list[Message]:
        handled.note(route, message, SEVERAL)
        return [message.replace(payload=b"%b/%d" % (message.payload, part)) for part in range(2)]

    return handler


def _filters(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> Message | None:
        dropped = number_of(message.payload) % 3 == 0
        handled.note(route, message, FILTERED if dropped else PASSED)
        return None if dropped else message

    return handler


def _raises_once(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> Message:
        number = number_of(message.payload)
        if number % FAILS_EVERY["raises once"] == 0 and not handled.raised[route, number]:
            handled.note(route, message, RAISED)
            raise ValueError("the first time only")
        handled.note(route, message, PASSED)
        return message

    return handler


def _poison(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> Message:
        if number_of(message.payload) % FAILS_EVERY["poison"] == 0:
            handled.note(route, message, RAISED)
            raise ValueError("every time")
        handled.note(route, message, PASSED)
        return message

    return handler


def _rejects(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    async def handler(message: Message) -> Message:
        if number_of(message.payload) % 4 == 0:
            await sleep(0)
            handled.note(route, message, RAISED)
            raise Reject("every fourth")
        handled.note(route, message, PASSED)
        return message

    return handler


def _waits(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    def handler(message: Message) -> Message:
        number = number_of(message.payload)
        if number % 5 == 0 and not handled.raised[route, number]:
            handled.note(route, message, RAISED)
            raise Retry(after=0.3)
        handled.note(route, message, PASSED)
        return message

    return handler


def _slow(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    async def handler(message: Message) -> Message:
        number = number_of(message.payload)
        await sleep(0.005 * (number * 7 % 20))
        handled.note(route, message, PASSED)
        return message

    return handler


def _slow_and_fails(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    async def handler(message: Message) -> Message:
        number = number_of(message.payload)
        await sleep(0.005 * (number * 11 % 20))
        if number % FAILS_EVERY["slow and fails"] == 0 and not handled.raised[route, number]:
            handled.note(route, message, RAISED)
            raise ValueError("the first time only")
        handled.note(route, message, PASSED)
        return message

    return handler


def _takes_long(handled: Handled, route: str, sleep: Sleep) -> Callable[[Message], Any]:
    """Return a handler that may still be running when the timeout of a shutdown or a reload expires."""

    async def handler(message: Message) -> Message:
        if number_of(message.payload) % LONG_EVERY == 0:
            await sleep(LONG)
        handled.note(route, message, PASSED)
        return message

    return handler


Make = Callable[[Handled, str, Sleep], Callable[[Message], Any]]

MAKE: dict[str, Make] = {
    "sync": _sync,
    "async": _async,
    "several": _several,
    "filters": _filters,
    "raises once": _raises_once,
    "poison": _poison,
    "takes long": _takes_long,
}

FAIL: dict[str, Make] = {"rejects": _rejects, "waits": _waits}
"""Kinds that decide the fate of a message."""

SLOW: dict[str, Make] = {"slow": _slow, "slow and fails": _slow_and_fails}
"""Kinds whose duration differs from message to message."""

FAILS_EACH_TIME = ("poison", "rejects")
