"""A router opened by a program is one process, and reports it if its settings ask for several."""

from __future__ import annotations

import pytest
import trio.testing

from router_trio import Router
from router_trio.events import Event, SettingIgnored
from router_trio.testing import FakeBroker
from tests.support.settings import settings


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_program_is_notified_that_workers_have_no_effect(
    workers: int, autojump_clock: trio.testing.MockClock
) -> None:
    broker, heard = FakeBroker(), list[Event]()
    several = settings("nats://fake:4222").with_workers(workers)
    router = Router(several, observers=[heard.append], connect=lambda name, settings: broker.connect)
    async with router.open():
        ignored = [event.key for event in heard if isinstance(event, SettingIgnored)]
    assert ignored == ["router.workers"] * (workers - 1)
