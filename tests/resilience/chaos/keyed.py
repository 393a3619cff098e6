"""The handler of routes by key; its duration differs from message to message."""

from __future__ import annotations

import trio

from router_trio import Message
from tests.resilience.chaos import load

LONGEST = 0.02
"""Seconds."""

KEYS = ("subject", 'tokens[1] < "5"')
"""The expressions that a seed draws from: ten keys, or two."""

_at_work: set[str] = set()


async def ten_keys(message: Message) -> Message:
    """Handle one message of a subject at a time."""
    return await _handle(message, message.subject)


async def two_keys(message: Message) -> Message:
    """Handle one message of half of the subjects at a time, as the expression splits them: some are no numbers."""
    return await _handle(message, str(message.subject.rpartition(".")[2] < "5"))


async def _handle(message: Message, key: str) -> Message:
    if key in _at_work:
        raise AssertionError(f"two calls for {key}")
    _at_work.add(key)
    try:
        await trio.sleep(LONGEST * (sum(message.payload[:8]) % 10) / 10)
    finally:
        _at_work.discard(key)
    return message


def group_of(key: str, number: int) -> int:
    """Return the key of the message with this number."""
    return number % load.SUBJECTS if key == KEYS[0] else int(number % load.SUBJECTS < load.SUBJECTS // 2)
