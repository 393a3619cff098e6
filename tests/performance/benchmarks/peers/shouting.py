"""The handler of the handler workload, for router_trio."""

from __future__ import annotations

import asyncio

import trio

from router_trio import Message


async def shout(message: Message) -> Message:
    """Return the payload in upper case."""
    return message.replace(payload=message.payload.upper())


async def shout_later(message: Message) -> Message:
    """Return the payload in upper case, after 10 ms."""
    await trio.sleep(0.01)
    return message.replace(payload=message.payload.upper())


async def shout_later_on_asyncio(message: Message) -> Message:
    """Return the payload in upper case, after 10 ms on an asyncio loop."""
    await asyncio.sleep(0.01)
    return message.replace(payload=message.payload.upper())
