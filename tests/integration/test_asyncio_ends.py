"""A program of asyncio with a router ends cleanly on Ctrl-C, and however its loop ends."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.support.command import running

pytestmark = pytest.mark.slow

STARTS_WITHIN = 45.0
"""Seconds until the first line of a program, beside much other work. None of these tests is about that."""

BEGIN = """
import asyncio, signal, sys, threading, time
from router_trio import Router, Settings, aio
from router_trio.errors import AsyncioRequiredError
from router_trio.testing import FakeBroker

broker = FakeBroker()
settings = Settings(
    router={"shutdown_timeout": "30s"},
    telemetry={"listen": ""},
    connections={"main": {"servers": ["nats://fake:4222"]}},
)
router = Router(settings, log=False, connect=lambda name, _: broker.connect)
receipts = []

@router.route("in", to="out")
def on_in(message):
    signal.raise_signal(signal.SIGINT)
    return message

async def main():
    async with aio.open(router) as live:
        receipts.append(await live.publish("out", b"x"))
        print("open", flush=True)
        WAIT

async def down(live):
    await receipts[0].settled()
    broker.down()
    while live.connections["main"].connected:
        await asyncio.sleep(0.01)
    receipts.append(await live.publish("out", b"x"))
    print("down", flush=True)

def ended():
    print("ended", [receipt.fate and receipt.fate.name for receipt in receipts])
    deadline = time.monotonic() + 5
    while others := [one.name for one in threading.enumerate() if one is not threading.main_thread()]:
        if all(name.startswith("Trio thread") for name in others):
            break  # idle workers of Trio
        assert time.monotonic() < deadline, others
        time.sleep(0.01)
"""

RUN = """
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
ended()
"""

BY_HAND = """
loop = asyncio.new_event_loop()
task = loop.create_task(main())
try:
    loop.run_until_complete(task)
except KeyboardInterrupt:
    print("interrupted")
    if task.done():
        assert isinstance(task.exception(), KeyboardInterrupt)
    else:
        task.cancel()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
loop.close()
ended()
"""


async def printed(
    program: str, tmp_path: Path, *signals: str, wait: str = "await asyncio.sleep(60)", warnings: str = "error"
) -> list[str]:
    """Run a program, send a SIGINT when it has printed each of `signals`, and return the lines of its output.

    The time for its end counts from its first line: beside other work the imports before that take most of it.
    """
    file = tmp_path / "program.py"
    file.write_text(program.replace("WAIT", wait))
    python = [sys.executable, "-W", f"{warnings}::RuntimeWarning", "-W", f"{warnings}::ResourceWarning"]
    async with running(file, cwd=tmp_path, python=python) as process:
        await process.has_printed("\n", within=STARTS_WITHIN)
        for text in signals:
            await process.has_printed(text)
            process.send(signal.SIGINT)
        assert await process.ended() == 0, process.errors
        if warnings == "error":
            assert process.errors == ""
        return process.output.splitlines()


@pytest.mark.parametrize("end", [RUN, BY_HAND])
async def test_ctrl_c_drains(tmp_path: Path, end: str) -> None:
    assert await printed(BEGIN + end, tmp_path, "open") == ["open", "interrupted", "ended ['fenced']"]


async def test_a_second_ctrl_c_cuts_the_drain_short(tmp_path: Path) -> None:
    wait = """
        try:
            await down(live)
            await asyncio.sleep(60)
        finally:
            asyncio.get_running_loop().call_later(0.3, os.write, 1, b"drains\\n")"""
    lines = await printed("import os" + BEGIN + RUN, tmp_path, "down", "drains", wait=wait.lstrip())
    assert lines == ["open", "down", "drains", "interrupted", "ended ['fenced', 'dropped']"]


@pytest.mark.parametrize("end", [RUN, BY_HAND])
async def test_ctrl_c_in_a_turn_of_trio_ends_the_body(tmp_path: Path, end: str) -> None:
    """Asyncio handles the signal, or where it does not, Trio does."""
    wait = "broker.publish('in', b''); await asyncio.sleep(60)"
    assert await printed(BEGIN + end, tmp_path, wait=wait) == ["open", "interrupted", "ended ['fenced']"]


async def test_an_error_in_the_turn_itself_ends_the_program(tmp_path: Path) -> None:
    """As a second Ctrl-C may be, which asyncio raises in any line."""
    wait = """
        def interrupted():
            raise KeyboardInterrupt
        with_ack = asyncio.create_task(live.publish_with_ack("nowhere", b"", timeout=50))
        await asyncio.sleep(0.05)
        live._guest._soon(interrupted)
        await asyncio.sleep(60)"""
    run = RUN.replace("ended()", "")  # a Trio that lacks a turn leaves its threads as they are
    assert await printed(BEGIN + run, tmp_path, wait=wait.lstrip(), warnings="default") == ["open", "interrupted"]


async def test_a_loop_that_is_closed_before_the_router_has_ended_hangs_nowhere(tmp_path: Path) -> None:
    end = """
loop = asyncio.new_event_loop()
task = loop.create_task(main())
loop.call_later(0.5, loop.stop)
loop.run_forever()
loop.close()
print("closed")

async def again():
    async with aio.open(router):
        pass

try:
    asyncio.run(again())
except AsyncioRequiredError as error:
    print(error)
"""
    lines = await printed(BEGIN + end, tmp_path, warnings="default")
    assert lines[:2] == ["open", "closed"]
    assert "another asyncio loop, which ended before its routers did" in lines[2]


async def test_a_loop_that_closes_its_generators_drains(tmp_path: Path) -> None:
    end = """
loop = asyncio.new_event_loop()
contexts = []

async def entered():
    contexts.append(aio.open(router))
    live = await contexts[0].__aenter__()
    receipts.append(await live.publish("out", b"x"))

loop.run_until_complete(entered())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
ended()
"""
    assert await printed(BEGIN + end, tmp_path) == ["ended ['fenced']"]
