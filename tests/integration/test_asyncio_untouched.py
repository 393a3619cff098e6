"""A program's asyncio stays as it was: before, while and after a router runs in its process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.command import environment
from tests.support.servers import NatsServer
from tests.unit.aio.programs import LOOPS

STATE = """\
NAMES = ["get_event_loop_policy", "set_event_loop_policy", "_get_running_loop", "get_running_loop", "get_event_loop",
         "set_event_loop", "new_event_loop", "current_task"]

def state():
    return [getattr(asyncio, name) for name in NAMES] + [
        getattr(asyncio.events, name) for name in NAMES[:-1]] + [
        asyncio.tasks.current_task, type(asyncio.get_event_loop_policy())]
"""

PROGRAM = """
import asyncio, json, sys, threading
EARLY
import trio

STATE
before = state()
told = {}

async def work():
    loop = asyncio.get_running_loop()
    assert asyncio.current_task() is not None
    await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.to_thread(int, 1), 5)
    return type(loop).__module__

def run_asyncio(when):
    told[when] = asyncio.run(work())

def in_a_thread(when):
    thread = threading.Thread(target=run_asyncio, args=(when,))
    thread.start()
    thread.join()

run_asyncio("before")
from router_trio import Router, Settings
import router_trio.router
told["imported"] = state() == before
run_asyncio("after the import")

settings = Settings(
    telemetry={"listen": ""},
    connections={"main": {"servers": [sys.argv[1]]}},
    routes=[{"name": "r", "from": {"stream": "NONE", "durable": "d"}, "to": [{"subject": "out"}]}],
)

async def main():
    import sniffio
    async with Router(settings, log=False).open() as live:
        told["running"] = state() == before
        assert sniffio.current_async_library() == "trio"
        assert live.connections["main"].connected
        await trio.to_thread.run_sync(in_a_thread, "while it runs")
        assert "no stream" in (live.routes[0].reason or ""), live.routes[0].reason
        receipt = await live.publish("out", b"x")
        assert (await receipt.settled()).name == "fenced"
        try:
            asyncio.get_running_loop()
            told["in trio"] = "a loop"
        except RuntimeError:
            told["in trio"] = "none"

trio.run(main)
run_asyncio("after")
told["ended"] = state() == before
print(json.dumps(told))
"""


def run(program: str, url: str) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program.replace("STATE\n", STATE), url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    told: dict[str, object] = json.loads(ended.stdout)
    return told


async def test_asyncio_is_unchanged(server: NatsServer) -> None:
    asyncio_loop = "asyncio.unix_events"
    assert run(PROGRAM.replace("EARLY", ""), server.url) == {
        "before": asyncio_loop,
        "imported": True,
        "after the import": asyncio_loop,
        "running": True,
        "while it runs": asyncio_loop,
        "in trio": "none",
        "after": asyncio_loop,
        "ended": True,
    }


async def test_a_policy_of_the_programs_own_stays(server: NatsServer) -> None:
    early = """
class Policy(asyncio.DefaultEventLoopPolicy):
    pass
asyncio.set_event_loop_policy(Policy())
"""
    told = run(PROGRAM.replace("EARLY", early), server.url)
    assert told["ended"] is True


IN_ONE_THREAD = """
import asyncio, json, sys
LOOP

STATE
before = state()
import nats
from router_trio import Router, Settings, aio

settings = Settings(
    telemetry={"listen": "127.0.0.1:0"},
    connections={"main": {"servers": [sys.argv[1]]}},
    streams=[{"name": "ORDERS", "subjects": ["orders.*"]}, {"name": "COPIES", "subjects": ["copies.*"]}],
    routes=[{
        "name": "r",
        "from": {"stream": "ORDERS", "durable": "d", "filter": "orders.*"},
        "to": [{"subject": "copies.{{wildcard(1)}}", "jetstream": True}],
    }],
)

async def main():
    loop = asyncio.get_running_loop()
    found = set()

    def look():
        found.add((asyncio.get_running_loop() is loop, asyncio.get_event_loop() is loop, state() == before))
        loop.call_soon(look)

    loop.call_soon(look)
    async with aio.open(Router(settings, log=False)) as live:
        own = await nats.connect(sys.argv[1])
        jetstream = own.jetstream()
        for number in range(50):
            acked = await live.publish_with_ack(f"orders.{number}", b"x")
            assert acked.sequence == number + 1
            await jetstream.stream_info("ORDERS")
        while (await jetstream.stream_info("COPIES")).state.messages < 50:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*live.http_address)
        writer.write(b"GET /readyz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        assert (line := await reader.readline()).endswith(b" 200 OK\\r\\n"), line
        writer.close()
        assert asyncio.current_task() is not None
        await own.close()
    print(json.dumps({"found": sorted(found), "loop": type(loop).__module__, "after": state() == before}))

RUN
"""


@pytest.mark.parametrize("loop", LOOPS)
async def test_asyncio_is_unchanged_while_trio_is_its_guest(server: NatsServer, loop: str) -> None:
    """The program's own nats-py client works beside that of the router, in one thread."""
    runs = "uvloop.run(main())" if loop == "uvloop" else "asyncio.run(main())"
    program = IN_ONE_THREAD.replace("LOOP", f"import {loop}").replace("RUN", runs)
    module = "uvloop" if loop == "uvloop" else "asyncio.unix_events"
    assert run(program, server.url) == {"found": [[True, True, True]], "loop": module, "after": True}


LATE = """
import sys
import router_trio.router
import asyncio, trio, trio_asyncio

async def ask():
    await asyncio.sleep(0)
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, future.set_result, 7)
    return await asyncio.wait_for(future, 5)

async def main():
    async with trio_asyncio.open_loop():
        assert await trio_asyncio.aio_as_trio(ask)() == 7

trio.run(main)
print("{}")
"""


@pytest.mark.parametrize("early", [False, True])
async def test_a_program_may_use_trio_asyncio_itself(server: NatsServer, early: bool) -> None:
    program = LATE.replace("import sys", "import sys, trio_asyncio", 1) if early else LATE
    assert run(program, server.url) == {}
