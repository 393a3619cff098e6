"""The pytest plugin, in a project of its own as its users have one."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support.command import command

CONFTEST = 'pytest_plugins = ["router_trio.testing.pytest"]\n'

PROGRAM = """
import trio
from router_trio import Message, Router, Settings

router = Router(Settings(connections={"main": {"servers": ["nats://nats.example.com"]}}))

@router.route(stream="ORDERS", durable="enrich", filter="orders.*", to={"subject": "enriched.$1", "jetstream": True})
async def enrich(message: Message) -> Message:
    await trio.lowlevel.checkpoint()
    return message.replace(payload=message.headers["total"].encode())
"""

TESTS = """
import pytest
import trio
from shop import router

@pytest.fixture
def streams(fake_broker):
    fake_broker.add_stream("ORDERS", ["orders.*"])
    fake_broker.add_stream("ENRICHED", ["enriched.*"])

@pytest.mark.trio
async def test_right(fake_broker, open_router, streams, autojump_clock):
    async with open_router(router) as live:
        fake_broker.publish("orders.7", b"x", {"total": "12"})
        (enriched,) = await fake_broker.stored("ENRICHED", 1)
        assert live.routes[0].name == "enrich"
    assert (enriched.subject, enriched.payload) == ("enriched.7", b"12")

@pytest.mark.trio
async def test_bug(fake_broker, open_router, streams):
    async with open_router(router):
        fake_broker.publish("orders.7", b"x")
        await fake_broker.stored("ENRICHED", 1)

@pytest.mark.trio
async def test_deadline(fake_broker, open_router, streams, autojump_clock):
    async with open_router(router) as live:
        fake_broker.publish("orders.7", b"x")
        with trio.fail_after(20):
            while not live.routes[0].settled["routed"]:
                await trio.sleep(0.1)

def test_no_router(fake_broker):
    assert not fake_broker
"""

ON_ASYNCIO = """
import asyncio
import pytest
from router_trio import Message, Router, Settings

router = Router(Settings(router={"loop": "asyncio"}, connections={"main": {"servers": ["nats://nats.example.com"]}}))

@router.route(stream="ORDERS", durable="enrich", filter="orders.*", to={"subject": "enriched.$1", "jetstream": True})
async def enrich(message: Message) -> Message:
    await asyncio.sleep(0.001)
    return message.replace(payload=message.headers["total"].encode())

@pytest.fixture
def streams(fake_broker):
    fake_broker.add_stream("ORDERS", ["orders.*"])
    fake_broker.add_stream("ENRICHED", ["enriched.*"])

@pytest.mark.parametrize("headers", [{"total": "12"}, {}], ids=["right", "bug"])
def test_on_asyncio(headers, fake_broker, open_router, streams):
    async def run():
        async with open_router(router) as live:
            await live.publish_with_ack("orders.7", b"x", headers=headers)
            fake_broker.publish("orders.8", b"x", headers)
            return await fake_broker.stored("ENRICHED", 2)

    assert [one.payload for one in asyncio.run(run())] == [b"12", b"12"]
"""


@pytest.mark.slow
def test_a_handler_with_a_bug_fails_its_tests_with_its_traceback(tmp_path: Path) -> None:
    for name, text in {"conftest": CONFTEST, "shop": PROGRAM, "test_shop": TESTS}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = command(
        "-q", "-rA", cwd=tmp_path, python=[sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], within=50
    )
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    _, bug, deadline, no_router = (
        done.stdout.partition(f" {name} ___")[2].partition("\n___")[0]
        for name in ("test_right", "test_bug", "test_deadline", "test_no_router")
    )
    cause = "KeyError: 'total'"
    assert cause in bug
    assert f'{tmp_path / "shop.py"}", line 10, in enrich' in bug
    assert "the routers on the fake broker" not in bug, "the error has it"
    assert "TooSlowError" in deadline
    assert cause in deadline.partition("the routers on the fake broker")[2]
    assert "the routers on the fake broker" not in no_router


@pytest.mark.slow
def test_a_test_on_asyncio_opens_the_router_in_its_own_loop(tmp_path: Path) -> None:
    for name, text in {"conftest": CONFTEST, "test_shop": ON_ASYNCIO}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = command("-q", cwd=tmp_path, python=[sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], within=50)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "nothing is left to do but to retry messages that fail each time" in done.stdout
    assert "KeyError: 'total'" in done.stdout
    assert "line 11, in enrich" in done.stdout


def test_a_run_of_pytest_without_the_plugin_does_not_pay_for_it() -> None:
    assert [one for one in entry_points(group="pytest11") if one.value.startswith("router_trio")] == []
