"""Fixtures of pytest for tests of routes and handlers on a fake broker, on Trio and on asyncio.

Name the plugin in the top `conftest.py`:

    pytest_plugins = ["router_trio.testing.pytest"]

It is not an entry point of pytest: importing it takes as long as importing pytest, and each run of pytest in an
environment with router_trio would pay for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from router_trio.testing.broker import FakeBroker

if TYPE_CHECKING:
    from router_trio.router import Router


OpenRouter = Callable[["Router"], AbstractAsyncContextManager[Any]]
"""Opens a router on the fake broker of a test, as `open_router` does."""

_BROKERS = pytest.StashKey[list[FakeBroker]]()


@pytest.fixture
def fake_broker(request: pytest.FixtureRequest) -> FakeBroker:
    """Return a `FakeBroker`. If the test fails, its report has what failed in the routers on it."""
    broker = FakeBroker()
    request.node.stash.setdefault(_BROKERS, []).append(broker)
    return broker


@pytest.fixture
def open_router(fake_broker: FakeBroker) -> OpenRouter:
    """Return a function that opens a router with its production settings on `fake_broker`.

    `async with open_router(router) as live:` has the `Live` of `Router.open` in a test on Trio, and that of
    `router_trio.aio.open` in a test on asyncio.
    """

    @asynccontextmanager
    async def opened(router: Router) -> AsyncIterator[Any]:
        def connect(name: str, settings: object) -> Any:
            return fake_broker.connect

        if trio.lowlevel.in_trio_task():
            async with router.open(connect=connect, listen="") as on_trio:
                yield on_trio
        else:
            from router_trio import aio  # it imports asyncio, which a test on Trio does not need

            async with aio.open(router, connect=connect, listen="") as on_asyncio:
                yield on_asyncio

    return opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a test that failed what failed in the routers on its brokers."""
    report = yield
    if report.failed:
        for broker in item.stash.get(_BROKERS, []):
            text = broker.report()
            if text and not broker.has_failed_test:
                report.sections.append(("router_trio: the routers on the fake broker", text))
    return report
