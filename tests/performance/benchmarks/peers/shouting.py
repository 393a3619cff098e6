"""The handler of the handler workload, for router_trio."""

from __future__ import annotations

from router_trio import Message


async def shout(message: Message) -> Message:
    """The payload in upper case."""
    return message.replace(payload=message.payload.upper())
