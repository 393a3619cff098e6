"""Messages that wait while NATS is away: the memory that they take, and how fast they drain afterwards.

`pending.py drain router_trio|raw COUNT` and `pending.py memory router_trio|frames COUNT`, 128 bytes a message; prints
JSON. The server is started by this program, on a port that was free before.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import trio

from router_trio import Live, Router, Settings
from router_trio.embedded import HOST, EmbeddedServer, reserve_port
from router_trio.events import Event, RetryComplete, RetryPending
from tests.performance.benchmarks.processor import resident_bytes
from tests.performance.benchmarks.started import pages_are_there

SUBJECT = "out.0001"
PAYLOAD = b"x" * 128
FENCE_EVERY = 64 * 1024
CHECKPOINT_EVERY = 1000


def router(port: int, count: int, seen: list[Event], arrived: trio.Event) -> Router:
    """Open a router for a server that is away, with room for everything; it notices when the drain is over."""

    def observe(event: Event) -> None:
        if isinstance(event, RetryPending | RetryComplete):
            seen.append(event)
        if isinstance(event, RetryComplete):
            arrived.set()

    connection = {
        "servers": [f"nats://{HOST}:{port}"],
        "reconnect_delay": "20ms",
        "max_reconnect_delay": "50ms",
        "max_pending_operations": count,
        "max_pending_bytes": "4GiB",
    }
    settings = Settings(
        router={"shutdown_timeout": "0s"}, telemetry={"listen": "127.0.0.1:0"}, connections={"main": connection}
    )
    return Router(settings, observers=[observe], log=False)


async def publish(live: Live, count: int) -> None:
    """Fill the queue."""
    for _ in range(count):
        await live.publish(SUBJECT, PAYLOAD)


async def drain_router(count: int) -> None:
    """Measure the drain from the moment that the link is up to the last confirmation."""
    seen: list[Event] = []
    arrived = trio.Event()
    with reserve_port() as port:
        async with router(port, count, seen, arrived).open() as live:
            await pages_are_there(live)
            await publish(live, count)
            processor = time.process_time()
            with tempfile.TemporaryDirectory() as directory:
                async with EmbeddedServer(Path(directory), port):
                    await arrived.wait()
                    processor = time.process_time() - processor
                    settled = live.ledger()["main"]["settled"]["fenced"]
    assert settled == count, f"{settled} of {count} were fenced"
    _tell(count, seen[-1].at - seen[0].at, processor)


async def drain_raw(count: int) -> None:
    """Measure the limit: the same frames, built before, with a fence behind each 64 KiB."""
    frame = b"PUB %b %d\r\n%b\r\n" % (SUBJECT.encode(), len(PAYLOAD), PAYLOAD)
    each = FENCE_EVERY // len(frame)
    chunks = [frame * min(each, count - done) + b"PING\r\n" for done in range(0, count, each)]
    with reserve_port() as port, tempfile.TemporaryDirectory() as directory:
        async with EmbeddedServer(Path(directory), port):
            stream = await trio.open_tcp_stream(HOST, port)
            await stream.send_all(b'CONNECT {"verbose":false,"protocol":1}\r\n')
            processor, start = time.process_time(), time.perf_counter()
            pongs = 0
            async with trio.open_nursery() as nursery:

                async def write() -> None:
                    for chunk in chunks:
                        await stream.send_all(chunk)

                nursery.start_soon(write)
                while pongs < len(chunks):
                    pongs += (await stream.receive_some(FENCE_EVERY)).count(b"PONG")
            _tell(count, time.perf_counter() - start, time.process_time() - processor)


def _tell(count: int, seconds: float, processor: float) -> None:
    print(json.dumps({"seconds": seconds, "rate": count / seconds, "cpu_us": processor / count * 1e6}))


async def memory_router(count: int) -> None:
    """Measure the growth of the process by waiting publishes."""
    with reserve_port() as port:
        async with router(port, count, [], trio.Event()).open() as live:
            await pages_are_there(live)
            await publish(live, CHECKPOINT_EVERY)
            before = _resident()
            await publish(live, count - CHECKPOINT_EVERY)
            _tell_memory(count - CHECKPOINT_EVERY, before)
            # A shutdown would drop each of them in order; that is outside of the measurement.
            sys.stdout.flush()
            os._exit(0)


async def memory_frames(count: int) -> None:
    """Measure the limit: the frames in a deque, without any state about them."""
    before = _resident()
    kept = deque(b"PUB %b %d\r\n%b\r\n" % (SUBJECT.encode(), len(PAYLOAD), PAYLOAD) for _ in range(count))
    _tell_memory(len(kept), before)


def _resident() -> int:
    gc.collect()
    return resident_bytes(os.getpid())


def _tell_memory(count: int, before: int) -> None:
    print(json.dumps({"bytes": (_resident() - before) / count}))


PROGRAMS = {
    ("drain", "router_trio"): drain_router,
    ("drain", "raw"): drain_raw,
    ("memory", "router_trio"): memory_router,
    ("memory", "frames"): memory_frames,
}

if __name__ == "__main__":
    trio.run(PROGRAMS[sys.argv[1], sys.argv[2]], int(sys.argv[3]))
