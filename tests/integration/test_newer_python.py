"""Programs work on a Python that has removed names of asyncio, and with warnings as errors.

Python 3.14 has no child watchers, and `get_event_loop` makes no loop. Newer ones will have no policies.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment
from tests.support.servers import NatsServer

REMOVED = """
import asyncio, asyncio.events, asyncio.unix_events, sys

WATCHERS = ["AbstractChildWatcher", "SafeChildWatcher", "FastChildWatcher", "ThreadedChildWatcher", "PidfdChildWatcher",
            "MultiLoopChildWatcher", "get_child_watcher", "set_child_watcher"]
for module in (asyncio, asyncio.events):
    for name in WATCHERS:
        vars(module).pop(name, None)
        if name in getattr(module, "__all__", ()):
            module.__all__ = [one for one in module.__all__ if one != name]

def get_event_loop():
    loop = asyncio._get_running_loop()
    if loop is None:
        raise RuntimeError("There is no current event loop in thread 'MainThread'.")
    return loop

asyncio.get_event_loop = asyncio.events.get_event_loop = get_event_loop
"""
SETTINGS = """
from router_trio import Message, Router, Settings

def settings():
    return Settings(
        telemetry={"listen": "127.0.0.1:0"},
        connections={"main": {"servers": [sys.argv[1]]}},
        streams=[{"name": "ORDERS", "subjects": ["orders.*"]}, {"name": "COPIES", "subjects": ["copies.*"]}],
        routes=[{
            "name": "r",
            "from": {"stream": "ORDERS", "durable": "d", "filter": "orders.*"},
            "to": [{"subject": "copies.{{wildcard(1)}}", "jetstream": True}],
        }],
    )
"""
PROGRAMS = {
    "a stream": """
import trio

async def main():
    async with Router(settings(), log=False).open() as live:
        with trio.fail_after(20):
            await live.publish_with_ack("orders.7", b"x")
            while live.ledger()["main"]["settled"].get("acked", 0) < 2:
                await trio.sleep(0.01)

trio.run(main)
""",
    "a handler on asyncio": """
import trio

router = Router(settings(), log=False)

@router.route("in.*", to="out.{{wildcard(1)}}", loop="asyncio")
async def slow(message: Message) -> Message:
    await asyncio.sleep(0)
    return message

async def main():
    async with router.open() as live:
        with trio.fail_after(20):
            await live.publish("in.7", b"x")
            while live.status()["routes"]["slow"]["routed"] < 1:
                await trio.sleep(0.01)

trio.run(main)
""",
    "a program of asyncio": """
from router_trio import aio

async def main():
    async with aio.open(Router(settings(), log=False)) as live, asyncio.timeout(20):
        await live.publish_with_ack("orders.7", b"x")
        while live.ledger()["main"]["settled"].get("acked", 0) < 2:
            await asyncio.sleep(0.01)

asyncio.run(main())
""",
}


def run(server: NatsServer, program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("what", PROGRAMS)
async def test_a_program_works_without_what_python_has_removed(server: NatsServer, what: str) -> None:
    run(server, REMOVED + SETTINGS + PROGRAMS[what])


async def test_the_demo_works_without_what_python_has_removed(server: NatsServer) -> None:
    run(server, REMOVED + "from router_trio.cli import main\nsys.exit(main(['demo', '--duration', '3s']))")


def test_the_cause_of_a_failed_import_is_shown(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("import sys\nsys.no_such_name\n")
    program = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nfrom router_trio import Router"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "module 'sys' has no attribute 'no_such_name'" in ended.stderr.splitlines()[-1]
