"""Publishing from a program: how long `count` messages of 128 bytes take until each has its answer.

`publishing.py router_trio|nats_py|raw URL COUNT CALLERS`; 0 callers: core publishes, otherwise that many at a time with
PubAck. Prints JSON. The time ends when the last message is confirmed: fenced, flushed, or acked.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

SUBJECT = "out.0001"
PAYLOAD = b"x" * 128
CHUNK = 64 * 1024


async def with_router(url: str, count: int, callers: int) -> None:
    """Publish with `live.publish` and `live.publish_with_ack`."""
    import trio

    from router_trio import Router, Settings
    from tests.performance.benchmarks.started import pages_are_there

    settings = Settings(telemetry={"listen": "127.0.0.1:0"}, connections={"main": {"servers": [url]}})
    async with Router(settings, log=False).open() as live:
        await pages_are_there(live)

        async def call() -> None:
            for _ in range(count // callers):
                await live.publish_with_ack(SUBJECT, PAYLOAD)

        clock = Clock()
        if callers:
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(call)
        else:
            for _ in range(count):
                receipt = await live.publish(SUBJECT, PAYLOAD)
            await receipt.settled()
        clock.stop(count)


async def with_nats_py(url: str, count: int, callers: int) -> None:
    """Publish with `client.publish` and `context.publish`."""
    import nats

    client = await nats.connect(url)
    context = client.jetstream()

    async def call() -> None:
        for _ in range(count // callers):
            await context.publish(SUBJECT, PAYLOAD)

    clock = Clock()
    if callers:
        await asyncio.gather(*[call() for _ in range(callers)])
    else:
        for _ in range(count):
            await client.publish(SUBJECT, PAYLOAD)
        # The PING of a flush overtakes the data in the client's buffer; after a second one nothing is left.
        await client.flush()
        await client.flush()
    clock.stop(count)
    await client.close()


async def with_raw(url: str, count: int, callers: int) -> None:
    """Measure the limit: frames built one by one and written in chunks; or a window of `callers`, acks counted."""
    import trio

    target = urlsplit(url)
    stream = await trio.open_tcp_stream(target.hostname or "127.0.0.1", target.port or 4222)
    await stream.send_all(b'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\nSUB _INBOX.raw 1\r\n')
    clock = Clock()
    if callers:
        frame = b"PUB %b _INBOX.raw %d\r\n%b\r\n" % (SUBJECT.encode(), len(PAYLOAD), PAYLOAD)
        sent = acked = 0
        while acked < count:
            free = min(callers - (sent - acked), count - sent)
            if free:
                await stream.send_all(frame * free)
                sent += free
            acked += (await stream.receive_some(CHUNK)).count(b'"seq"')
    else:
        frames: list[bytes] = []
        size = 0
        for _ in range(count):
            frames.append(b"PUB %b %d\r\n%b\r\n" % (SUBJECT.encode(), len(PAYLOAD), PAYLOAD))
            size += len(frames[-1])
            if size >= CHUNK:
                await stream.send_all(b"".join(frames))
                frames, size = [], 0
        await stream.send_all(b"".join([*frames, b"PING\r\n"]))
        while b"PONG" not in await stream.receive_some(CHUNK):
            pass
    clock.stop(count)


class Clock:
    """A clock that starts on creation."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._processor = time.process_time()

    def stop(self, count: int) -> None:
        """Print the figures."""
        processor = time.process_time() - self._processor
        seconds = time.perf_counter() - self._at
        print(json.dumps({"rate": count / seconds, "cpu_us": processor / count * 1e6, "seconds": seconds}))


def main() -> None:
    """Run the job that the arguments name."""
    who, url, count, callers = sys.argv[1:5]
    if who == "nats_py":
        asyncio.run(with_nats_py(url, int(count), int(callers)))
        return
    import trio

    trio.run(with_router if who == "router_trio" else with_raw, url, int(count), int(callers))


if __name__ == "__main__":
    main()
