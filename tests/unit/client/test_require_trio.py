"""Where a router may be opened, and the errors elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from router_trio import Router, RouterError, Settings
from router_trio.errors import TrioRequiredError
from router_trio.testing import FakeBroker
from tests.support.settings import settings


async def opened(router: Router) -> None:
    async with router.open():
        pytest.fail("entered")


def fake_router() -> Router:
    broker = FakeBroker()
    return Router(settings("nats://127.0.0.1:4222"), connect=lambda name, _: broker.connect)


def test_opening_under_asyncio_names_the_function_for_asyncio() -> None:
    with pytest.raises(
        TrioRequiredError, match=r"runs on Trio, and this is asyncio; .*aio\.open\(router\).*asyncio\.md"
    ):
        asyncio.run(opened(fake_router()))


def test_opening_without_an_event_loop_says_so() -> None:
    coroutine = opened(fake_router())
    with pytest.raises(
        RouterError, match=r"runs on Trio, and this is no task of Trio; run the program with trio\.run\(main\)"
    ):
        coroutine.send(None)


async def test_an_open_router_may_use_another_network_and_no_http() -> None:
    own, other = FakeBroker(), FakeBroker()
    everyday = Settings(telemetry={"listen": "127.0.0.1:1"}, connections={"main": {"servers": ["nats://127.0.0.1"]}})
    router = Router(everyday, connect=lambda name, _: own.connect)
    async with router.open(connect=lambda name, _: other.connect, listen="") as live:
        assert live.http_address is None
        await live.publish("out", b"x")
    assert [one.subject for one in other.published] == ["out"]
    assert (own.connect_attempts, own.published) == (0, [])
    assert router.settings.telemetry.listen == "127.0.0.1:1"


async def test_an_address_that_is_not_valid_is_refused_with_its_key() -> None:
    with pytest.raises(RouterError, match=r"telemetry\.listen: must be HOST:PORT"):
        async with fake_router().open(listen="nowhere"):
            pytest.fail("entered")
