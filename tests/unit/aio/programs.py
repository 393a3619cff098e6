"""Programs of asyncio with a router on a fake broker, run on each event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from router_trio import Router
from router_trio.testing import FakeBroker
from tests.support.settings import settings

T = TypeVar("T")
WITHIN = 20.0


def loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return what makes each event loop that a program may use."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if find_spec("uvloop") is not None:
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


LOOPS = loop_factories()


def run(main: Callable[[], Awaitable[T]], loop: str = "asyncio") -> T:
    """Run a program as `asyncio.run` does, on this kind of loop, for a bounded time."""

    async def bounded() -> T:
        async with asyncio.timeout(WITHIN):
            return await main()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(bounded())


def router(broker: FakeBroker, **connection: Any) -> Router:
    """Return a router whose one connection leads to a fake broker."""
    return Router(settings("nats://fake:4222", **connection), log=False, connect=lambda name, _: broker.connect)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.005)
