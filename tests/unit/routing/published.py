"""Publishing to a core route."""

from __future__ import annotations

from tests.support.eventually import eventually
from tests.support.world import World


async def published(w: World, count: int, connection: str = "main") -> None:
    await eventually(lambda: len(w.brokers[connection].published) >= count, 60)
