"""Handlers and messages for routes with a key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any

import trio

from router_trio import Message
from router_trio.testing import FakeBroker
from tests.support.world import World, handled


def hashed(key: bytes) -> bytes:
    return blake2b(key, digest_size=64).digest()


OUT: dict[str, Any] = {"subject": "out.{{wildcard(1)}}", "jetstream": True}
IN: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*"}
KEY = "headers.key"


class Calls:
    """A handler that the test lets return: `active` are the keys of current calls, `most` the most there were at
    once.
    """

    def __init__(self) -> None:
        self.active: list[str] = []
        self.most = 0
        self.begun: list[bytes] = []
        self._gates: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.takes: Callable[[Message], Awaitable[None]] | None = None

    async def __call__(self, message: Message) -> Message:
        key = message.headers.get("key") or message.subject
        assert key not in self.active, "two calls of one key"
        self.active.append(key)
        self.begun.append(message.payload)
        self.most = max(self.most, len(self.active))
        try:
            if self.takes is None:
                await self._gates[key].wait()
            else:
                await self.takes(message)
        finally:
            self.active.remove(key)
        return message

    __name__ = "calls"

    def let_go(self, *keys: str) -> None:
        """Let all calls of these keys return, from now on."""
        for key in keys:
            self._gates[key].set()


def publish(broker: FakeBroker, *messages: str, subject: str = "in.x") -> None:
    """Publish messages as `key:payload`, the header `key` left out if it is empty."""
    for message in messages:
        key, _, payload = message.partition(":")
        broker.publish(subject, payload.encode(), headers={"key": key} if key else {})


def unchanged(message: Message) -> Message:
    return message


async def takes_a_second(message: Message) -> None:
    await trio.sleep(1)


def payloads_of(w: World, key: str) -> list[bytes]:
    return [one.payload for one in w.broker.messages("OUT") if one.headers.get("key") == key]


def by_key(handler: Callable[..., Any], **more: Any) -> Any:
    return handled(handler, **{"to": OUT, **IN, "key": KEY, "concurrency": 4, **more})


HASHED_TO_NUL = next(f"{number:0100}" for number in range(10_000) if hashed(b"s%0100d" % number).startswith(b"\0"))
"""A key so long that it is replaced by a hash, which begins with NUL."""
