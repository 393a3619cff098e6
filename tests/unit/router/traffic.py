"""What tests of reloads ask of a router on fake brokers, and what they do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from router_trio.message import Message
from tests.support.watch import assert_accounted
from tests.support.world import World


def reloaded(w: World) -> Any:
    """The last of the events that tell of a reload."""
    return w.watch.of("ROUTER_RELOADED")[-1]


@asynccontextmanager
async def traffic(w: World, *subjects: str, every: float = 0.001) -> AsyncIterator[list[int]]:
    """Publish consecutive numbers to all of these subjects while this is entered; yields how many, in a list."""
    sent = [0]

    async def publish() -> None:
        while True:
            for subject in subjects:
                w.broker.publish(subject, b"%d" % sent[0])
            sent[0] += 1
            assert_accounted(w.live)
            await trio.sleep(every)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        yield sent
        nursery.cancel_scope.cancel()


def received(w: World, *subjects: str, connection: str = "main") -> list[bytes]:
    """The payloads that came to any of these subjects, in order."""
    return [one.payload for one in w.brokers[connection].published if one.subject in subjects]


def never(message: Message) -> Message:
    """A handler of which each message fails."""
    raise RuntimeError


def by_name(w: World) -> dict[str, Any]:
    return {route.name: route for route in w.live.routes}
