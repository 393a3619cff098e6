"""A child that a handler has forked, and that returns from it, is no second router; threads do not delay the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import trio

from tests.integration.test_blocked_loop import configuration
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

RETURN = """
    if message.payload == b"fork" and not os.fork():
        note()
"""
RAISE = """
    if message.payload == b"fork" and not os.fork():
        note()
        os.execv("/no/such/program", ["program"])
"""
HANDLERS = {
    "returns": ("def handle(message):", RETURN),
    "raises": ("def handle(message):", RAISE),
    "returns from a coroutine": ("async def handle(message):", RETURN),
    "returns on asyncio": ("import asyncio\nasync def handle(message):", f"    await asyncio.sleep(0.01)\n{RETURN}"),
    "returns in a task of its own on asyncio": (
        "import asyncio\nasync def handle(message):",
        """
    async def fork():
        await asyncio.sleep(0.01)
        if message.payload == b"fork" and not os.fork():
            note()
            await asyncio.sleep(0.01)
    await asyncio.create_task(fork())
""",
    ),
    "raises after it has blocked": ("async def handle(message):", f"    await trio.sleep(0.01)\n{RAISE}"),
    "returns in a task of its own": (
        "async def handle(message):",
        """
    async def fork():
        await trio.sleep(0.01)
        if message.payload == b"fork" and not os.fork():
            note()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fork)
""",
    ),
}
NOTE = """
import os, threading, time
import trio

def note():
    open(f"child-{os.getpid()}", "w")
"""
COUNT = 20


def write(tmp_path: Path, url: str, code: str, *more: str) -> Path:
    path = configuration(tmp_path, url, "handle")
    (tmp_path / "blocking.py").write_text(NOTE + code)
    path.write_text(path.read_text().replace('name = "orders"', "\n".join(['name = "orders"', *more])))
    return path


def children_in(folder: Path) -> list[int]:
    return [int(one.name.partition("-")[2]) for one in folder.glob("child-*")]


def lives(pid: int) -> bool:
    """Return True if a process is running; one that has ended waits for its parent as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("more", [(), ('key = "subject"', "concurrency = 4")], ids=["in order", "by key"])
@pytest.mark.parametrize("kind", HANDLERS)
async def test_a_child_that_returns_from_the_handler_ends(
    server: NatsServer, tmp_path: Path, kind: str, more: tuple[str, ...]
) -> None:
    code = "\n".join([*HANDLERS[kind], "    return message\n"])
    loop = ('loop = "asyncio"',) if "asyncio" in kind else ()
    path = write(tmp_path, server.url, code, *more, *loop)
    async with running("run", path, cwd=tmp_path) as run, connect(server.url) as c:
        await run.has_logged("ROUTER_STARTED")
        copies = await c.subscribe("eu.*")
        for number in range(COUNT):
            await c.publish(f"orders.{number}", b"fork" if number % 4 == 1 else b"")
        subjects = [(await copies.next()).subject for _ in range(COUNT)]
        try:
            await eventually(lambda: len(children_in(tmp_path)) == COUNT // 4)
            children = children_in(tmp_path)
            await eventually(lambda: not any(map(lives, children)))
            await c.publish("orders.last", b"")
            subjects.append((await copies.next()).subject)
            await c.ping()
            assert sorted(subjects + [one.subject for one in copies.waiting()]) == sorted(
                f"eu.{number}" for number in [*range(COUNT), "last"]
            )
            run.send(signal.SIGTERM)
            assert await run.ended() == 0
            assert "os._exit()" in run.errors
        finally:
            for child in filter(lives, children_in(tmp_path)):
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "start",
    ["threading.Thread(target=time.sleep, args=(60,), name='upload').start()", "pool.submit(time.sleep, 60)"],
    ids=["a thread", "a pool"],
)
async def test_a_thread_of_a_handler_does_not_delay_the_end(server: NatsServer, tmp_path: Path, start: str) -> None:
    code = f"""
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1, thread_name_prefix="upload")

def handle(message):
    {start}
    return message
"""
    async with running("run", write(tmp_path, server.url, code), cwd=tmp_path) as run, connect(server.url) as c:
        await run.has_logged("ROUTER_STARTED")
        copies = await c.subscribe("eu.*")
        await c.publish("orders.7", b"x")
        await copies.next()
        began = time.monotonic()
        run.send(signal.SIGTERM)
        await run.has_logged("ROUTER_STOPPED")
        with trio.fail_after(20):
            assert await run.ended() == 0
        assert time.monotonic() - began < 12
        assert "upload" in run.errors
