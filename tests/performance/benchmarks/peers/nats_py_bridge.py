"""nats-py on asyncio from one server to another, as a careful program uses it: a failure is logged, and never fatal.

`nats_py_bridge.py URL core|stream TO`: `in.TOKEN` of the server at URL becomes `out.TOKEN` of the one at TO.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import Future

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import PubAck

BATCH = 500
STORED_WITHIN = 5.0


async def core(source: Client, destination: Client) -> None:
    """Route with a callback that publishes."""

    async def forward(message: Msg) -> None:
        try:
            await destination.publish("out." + message.subject[3:], message.data)
        except Exception as error:
            say_not_sent(error)

    await source.subscribe("in.*", cb=forward)
    await asyncio.Event().wait()


async def stream(source: Client, destination: Client) -> None:
    """Fetch, publish_async, and ack what was stored; nak the rest."""
    publisher = destination.jetstream(publish_async_max_pending=4000)
    subscription = await source.jetstream().pull_subscribe_bind("bench", stream="IN")
    while True:
        try:
            messages = await subscription.fetch(BATCH, timeout=5)
        except TimeoutError:
            continue
        copies: list[tuple[Msg, Future[PubAck]]] = []
        for message in messages:
            headers = {"Nats-Msg-Id": str(message.metadata.sequence.stream)}
            try:
                future = await publisher.publish_async("out." + message.subject[3:], message.data, headers=headers)
            except Exception as error:
                await give_back(message, error)
            else:
                copies.append((message, future))
        if copies:
            await asyncio.wait([future for _, future in copies], timeout=STORED_WITHIN)
        for message, future in copies:
            if not future.done():
                future.cancel()
                await give_back(message, TimeoutError())
            elif failure := future.exception():
                await give_back(message, failure)
            else:
                await message.ack()


async def give_back(message: Msg, error: BaseException) -> None:
    """Nak a message, to have it redelivered."""
    say_not_sent(error)
    await message.nak()


def say_not_sent(error: BaseException) -> None:
    """Print one line for each message."""
    print(f"not sent: {error!r}", file=sys.stderr)


async def main(url: str, kind: str, to: str) -> None:
    """Connect to both servers, and route."""
    source = await nats.connect(url, max_reconnect_attempts=-1)
    destination = await nats.connect(to, max_reconnect_attempts=-1)
    await (stream if kind == "stream" else core)(source, destination)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
