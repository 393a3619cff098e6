"""Functions that can be handlers, and one that can't."""

from __future__ import annotations

import trio

from router_trio.message import Message


async def asynchronous(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return message


def three(message: Message, extra: int, more: int) -> None: ...
