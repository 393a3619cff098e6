"""Cancellation in a handler does not count as its error, and no signal is lost in one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.message import Message
from tests.support.command import environment
from tests.support.eventually import eventually
from tests.support.world import handled, overhearing, to, world

# --- the router's own cancellation -----------------------------------------------------------------------------------


async def test_the_cancellation_of_the_route_is_not_an_error_of_the_handler(autojump_clock: MockClock) -> None:
    async def wait(message: Message) -> None:
        await trio.sleep_forever()

    handler = handled(wait, subject="in.*", to=to("out.x"))
    async with world(handlers=[handler], shutdown_timeout=1.0) as w:
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.route.received)
    assert dict(w.route.failed) == {"shutdown": 1}


async def swallows(message: Message) -> Message:
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return message
    return message


async def turns_it_into_another_error(message: Message) -> Message:
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        raise RuntimeError("instead") from None
    return message


async def mixes(message: Message) -> Message:
    try:
        await trio.sleep_forever()
    except trio.Cancelled as error:
        raise BaseExceptionGroup("mixed", [error, SystemExit(1)]) from None
    return message


async def never_ends(message: Message) -> Message:
    while True:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()


@pytest.mark.parametrize("handler", [swallows, turns_it_into_another_error, mixes, never_ends])
async def test_a_handler_that_hides_the_cancellation_is_given_up_once(
    autojump_clock: MockClock, handler: Callable[[Message], Any]
) -> None:
    """Its message was counted as left over: it must not be counted again, and its answer must not be sent."""
    route = handled(handler, subject="in.*", to=to("out.x"))
    async with world(handlers=[route], shutdown_timeout=1.0) as w, overhearing(w.broker, "out.*") as heard:
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.route.received)
    assert dict(w.route.failed) == {"shutdown": 1}
    assert heard == []


PROGRAM = """
import os, signal, sys
import trio
from router_trio import Router, Settings
from router_trio.testing import FakeBroker

broker = FakeBroker()
config = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://fake:4222"]}})
router = Router(config, connect=lambda name, one: broker.connect)

@router.route("in.*", to="out.x")
HANDLER

async def main():
    async with router.open():
        broker.publish("in.1", b"1")
        await trio.sleep(5)
        print("still there", flush=True)

PREPARE
trio.run(main)
"""

SYNCHRONOUS = """
def handle(message):
    os.kill(os.getpid(), signal.NUMBER)
    return message
"""
BLOCKED = """
async def handle(message):
    await trio.sleep(0.01)
    os.kill(os.getpid(), signal.NUMBER)
    return message
"""
IN_A_NURSERY = """
async def handle(message):
    async def one():
        await trio.sleep(0.01)
        os.kill(os.getpid(), signal.NUMBER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
    return message
"""


@pytest.mark.slow
@pytest.mark.parametrize("handler", [SYNCHRONOUS, BLOCKED, IN_A_NURSERY])
@pytest.mark.parametrize(
    ("number", "prepare", "code", "error"),
    [
        ("SIGINT", "", -signal.SIGINT, "KeyboardInterrupt"),
        ("SIGTERM", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", (1, 7), ""),
    ],
)
def test_a_signal_while_a_handler_runs_ends_the_program(
    tmp_path: Path, handler: str, number: str, prepare: str, code: Any, error: str
) -> None:
    program = PROGRAM.replace("HANDLER", handler.strip()).replace("PREPARE", prepare).replace("NUMBER", number)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, env=environment()
    )
    assert "still there" not in ended.stdout
    assert ended.returncode in (code if isinstance(code, tuple) else (code, 130)), ended.stderr
    assert error in ended.stderr
