"""nats-py on asyncio, used as its documentation shows: a callback that publishes, or fetch, publish_async and ack.

`nats_py.py URL core|handler|waiting|stream|bucket|JOB [--uvloop] [--routes N] [--connections N] [--fetch N]`

JOB is one of `by_content.py`.
"""

from __future__ import annotations

import argparse
import asyncio
from importlib import import_module

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.performance.benchmarks.peers.by_content import DECIDE


async def core(url: str, with_handler: bool, routes: int, connections: int) -> None:
    """Route `in.TOKEN` to `out.TOKEN`, payload in upper case with a handler; several subscriptions or clients."""
    for number in range(connections):
        client = await nats.connect(url)

        async def forward(message: Msg, client: Client = client) -> None:
            payload = message.data.upper() if with_handler else message.data
            await client.publish("out." + message.subject[3:], payload)

        prefix = "in." if number == 0 else f"in{number}."
        for subject in [f"{prefix}{route:04d}.*" for route in range(routes)] or [f"{prefix}*"]:
            await client.subscribe(subject, cb=forward)
        await client.flush()
    await asyncio.Event().wait()


async def waiting(url: str, most: int = 64) -> None:
    """Route `in.TOKEN` to `out.TOKEN`, payload in upper case after 10 ms, in at most `most` tasks at a time."""
    client = await nats.connect(url)
    room = asyncio.Semaphore(most)
    tasks: set[asyncio.Task[None]] = set()

    async def forward(message: Msg) -> None:
        try:
            await asyncio.sleep(0.01)
            await client.publish("out." + message.subject[3:], message.data.upper())
        finally:
            room.release()

    async def begin(message: Msg) -> None:
        await room.acquire()
        task = asyncio.create_task(forward(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await client.subscribe("in.*", cb=begin)
    await client.flush()
    await asyncio.Event().wait()


async def content(url: str, job: str) -> None:
    """Route `in.TOKEN` to `out.TOKEN`, with a callback as one would write it for the job."""
    client = await nats.connect(url)
    decide = DECIDE[job]()

    async def forward(message: Msg) -> None:
        payload = decide(message.headers or {}, message.data)
        if payload is not None:
            await client.publish("out." + message.subject[3:], payload, headers=message.headers)

    await client.subscribe("in.*", cb=forward)
    await client.flush()
    await asyncio.Event().wait()


async def stream(url: str, batch: int) -> None:
    """Route stream IN, durable `bench`, to a stream that keeps `out.*`: acked when the destination has acked."""
    client = await nats.connect(url)
    context = client.jetstream(publish_async_max_pending=4000)
    subscription = await context.pull_subscribe_bind("bench", stream="IN")
    while True:
        try:
            messages = await subscription.fetch(batch, timeout=5)
        except TimeoutError:
            continue
        futures = [
            await context.publish_async(
                "out." + message.subject[3:],
                message.data,
                headers={"Nats-Msg-Id": str(message.metadata.sequence.stream)},
            )
            for message in messages
        ]
        await asyncio.gather(*futures)
        for message in messages:
            await message.ack()


async def bucket(url: str) -> None:
    """Copy bucket `in` to bucket `out`, each value as it is watched."""
    client = await nats.connect(url)
    context = client.jetstream()
    copy = await context.key_value("out")
    watcher = await (await context.key_value("in")).watchall(include_history=True)
    async for entry in watcher:
        if entry is not None:  # which ends the values that were there at first
            await copy.put(entry.key, entry.value or b"")


def main() -> None:
    """Run the job that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("kind")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--routes", type=int, default=0)
    parser.add_argument("--fetch", type=int, default=500)
    parser.add_argument("--connections", type=int, default=1)
    given = parser.parse_args()
    if given.kind == "stream":
        job = stream(given.url, given.fetch)
    elif given.kind == "bucket":
        job = bucket(given.url)
    elif given.kind == "waiting":
        job = waiting(given.url)
    elif given.kind in DECIDE:
        job = content(given.url, given.kind)
    else:
        job = core(given.url, given.kind == "handler", given.routes, given.connections)
    if given.uvloop:
        import_module("uvloop").run(job)
    else:
        asyncio.run(job)


if __name__ == "__main__":
    main()
