"""When checkpoints are saved, over servers in memory."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from router_trio.position import checkpoints
from router_trio.settings import Settings

CONFIGURATION = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[positions]]
consumer = "billing"
route = "copy"
interval = "100s"
[[routes]]
name = "copy"
from = { stream = "SOURCE", durable = "router" }
to = [ { subject = "copy" } ]
"""


async def test_checkpoints_keep_their_interval_over_a_reload(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    saved: list[float] = []
    settings = Settings.model_validate(tomllib.loads(CONFIGURATION))
    current = [settings]

    @asynccontextmanager
    async def open_links(settings: Settings, command: str, names: Iterable[str]) -> AsyncIterator[dict[str, Any]]:
        yield {name: SimpleNamespace(stored=lambda stream: None) for name in names}

    class Bucket:
        def __init__(self, link: object, position: object, metadata: object) -> None:
            pass

        async def ensure(self) -> None:
            pass

        async def save(self, standing: object) -> None:
            saved.append(round(trio.current_time() - start))

    async def read_standing(stored: object, name: str) -> None:
        pass

    for name, fake in {"open_links": open_links, "Bucket": Bucket, "read_standing": read_standing}.items():
        monkeypatch.setattr(checkpoints, name, fake)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoints.keep_checkpoints, settings.positions[0], lambda: current[0], lambda event: None)
        await trio.sleep(150)
        current[0] = settings.model_copy()
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert saved == [0, 100, 200, 300]
