"""The handlers of a route whose settings change all the time, and what they must not see: see `settings_walk`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from router_trio import Message, Retry

FAILS_EVERY = 7
"""Which messages fail, at their first call."""


def number_of(payload: bytes) -> int:
    """Return the number of a message."""
    return int(json.loads(payload)["n"])


def fails(number: int) -> bool:
    """Return True for a message whose handler fails once, if messages fail."""
    return number % FAILS_EVERY == 0


@dataclass
class Calls:
    """The handler calls in progress, compared with the settings in force."""

    messages_fail: bool = False
    some_scheduled: bool = False
    """True if failed messages may wait in another stream: they return in no order, also beside one of their key."""
    settings: list[Mapping[str, Any]] = field(default_factory=list)
    """The settings of the route that may start a call: during a reload those before and after it."""
    wrong: list[str] = field(default_factory=list)
    most: int = 0
    count: int = 0
    failed: set[int] = field(default_factory=set)
    _active: list[tuple[str, int]] = field(default_factory=list)

    async def call(self, message: Message, seconds: float) -> Message:
        """Be in progress for some seconds; raise once for some messages."""
        number, active = number_of(message.payload), self._active
        self.count += 1
        if any(message.subject == subject and self._is_ordered(number, other) for subject, other in active):
            self.wrong.append(f"message {number} is handled while another one of {message.subject} is")
        active.append((message.subject, number))
        self.most = max(self.most, len(active))
        allowed = max(one.get("concurrency", 1) for one in self.settings)
        if len(active) > allowed:
            self.wrong.append(f"message {number} is call {len(active)} of {allowed}")
        try:
            await trio.sleep(seconds)
        finally:
            active.remove((message.subject, number))
        if self.messages_fail and fails(number) and number not in self.failed:
            self.failed.add(number)
            raise Retry(after=0.3) if number % 2 else ValueError("the first time")
        return message

    def _is_ordered(self, *numbers: int) -> bool:
        return not self.some_scheduled or self.failed.isdisjoint(numbers)


calls = Calls()
"""The calls that the route of this process has made."""


def begin(*, messages_fail: bool, some_scheduled: bool = False) -> Calls:
    """Return the calls of a route that begins now."""
    global calls
    calls = Calls(messages_fail, some_scheduled)
    return calls


async def first(message: Message) -> Message:
    """Return the message; some take longer than others."""
    return await calls.call(message, 0.02 if number_of(message.payload) % 11 == 0 else 0.0)


async def second(message: Message) -> Message:
    """Return the message after a moment."""
    return await calls.call(message, 0.001 * (number_of(message.payload) % 3))


async def slow(message: Message) -> Message:
    """Return the message; one of many takes as long as several reloads."""
    return await calls.call(message, 0.5 if number_of(message.payload) % 50 == 0 else 0.0)
