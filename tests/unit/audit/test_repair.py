"""Routes whose missing copies are not published."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from router_trio import Router, Settings
from router_trio.testing import FakeBroker
from tests.support.command import in_process

CONFIGURATION = """
[telemetry]
listen = ""
[connections.main]
servers = ["nats://127.0.0.1:1"]
[[routes]]
name = "orders"
from = { stream = "IN", durable = "router" }
to = [{ subject = "out.x" }]
handler = "tests.unit.audit.test_repair:unchanged"
[routes.retry]
schedule = { stream = "RETRY", prefix = "retry", after = "30s" }
"""
WAITS = "messages of route orders wait in stream RETRY for their next attempts"


def unchanged(message: object) -> object:
    return message


def test_a_route_whose_messages_wait_elsewhere_is_not_repaired(tmp_path: Path) -> None:
    """A copy that is missing may be sent later, and would be there twice."""
    (tmp_path / "router.toml").write_text(CONFIGURATION)
    result = in_process("audit", "router.toml", "orders", "--repair", cwd=tmp_path)
    assert (result.returncode, WAITS in result.stderr) == (2, True), result.stderr


async def test_a_program_does_not_repair_such_a_route_either(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.*"])
    router = Router(Settings.parse(CONFIGURATION.encode()), log=False, connect=lambda name, settings: broker.connect)
    async with router.open() as live:
        with pytest.raises(ValueError, match=WAITS):
            await live.audit("orders", repair=True)
