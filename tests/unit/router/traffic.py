"""Helpers for tests of reloads: traffic through a router on fake brokers, and what arrived."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from router_trio.message import Message
from tests.support.watch import assert_accounted
from tests.support.world import World


def reloaded(w: World) -> Any:
    """Return the latest ROUTER_RELOADED event."""
    return w.watch.of("ROUTER_RELOADED")[-1]


@asynccontextmanager
async def traffic(w: World, *subjects: str, every: float = 0.001) -> AsyncIterator[list[int]]:
    """Publish consecutive numbers to all of these subjects during the body; yield a list with their count."""
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
    """Return the payloads that arrived on any of these subjects, in order."""
    return [one.payload for one in w.brokers[connection].published if one.subject in subjects]


def never(message: Message) -> Message:
    """Fail every message."""
    raise RuntimeError


def by_name(w: World) -> dict[str, Any]:
    return {route.name: route for route in w.live.routes}
