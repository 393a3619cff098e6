"""What a variant changes in a scene: how its streams and its durable are made, and how many routers share it.

The faults of a seed are the same in each variant. What each has to keep beyond that is in `verdict`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.resilience.chaos import load
from tests.resilience.chaos.schedule import Schedule, Variant
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient

DURABLE = "router"
SINK = "SINK"
SOURCE = "SOURCE"

FILTER = "source.*"
"""What a route takes of the source."""

ACK_WAIT = 2.0
"""Seconds."""

MAX_DELIVER = 3
WORN = 100
"""Messages of which a durable with `max_deliver` has used up all deliveries but one before a router comes."""

NOISE = 19
"""Messages in a sparse source that the route's filter does not take, before each that it takes."""


def routers(variant: Variant) -> int:
    """How many routers run at the same time."""
    return 2 if variant == "two-routers" else 1


def noise(variant: Variant) -> int:
    """How many messages that nobody takes are published before each of the others."""
    return NOISE if variant == "sparse" else 0


async def create_source(stream: JetStream, variant: Variant) -> None:
    """Create the stream that the routers read."""
    subjects = [FILTER, "noise.*"] if variant == "sparse" else [FILTER]
    await stream.create_stream(SOURCE, subjects, storage=_storage(variant))


async def create_sink(stream: JetStream, schedule: Schedule) -> None:
    """Create the stream that keeps what the routers send."""
    subject = "sink.*" if schedule.kind == "stream" else "out.*"
    await stream.create_stream(SINK, [subject], storage=_storage(schedule.variant))


def dies_with_its_server(variant: Variant) -> bool:
    """Return True if the streams are kept in memory: a server that is started again knows nothing of them."""
    return variant == "memory"


def _storage(variant: Variant) -> str:
    return "memory" if dies_with_its_server(variant) else "file"


async def create_worn_durable(client: RawClient, messages: int) -> None:
    """Create the durable as an administrator does who wants messages given up after `MAX_DELIVER` deliveries.

    Then deliver the first messages, which the load publishes once more with the same ids, once less than that often.
    """
    stream = JetStream(client)
    limits = {"max_deliver": MAX_DELIVER, "ack_wait": int(ACK_WAIT * 1e9)}
    await stream.create_consumer(SOURCE, DURABLE, filter_subject=FILTER, **limits)
    worn = range(min(WORN, messages))
    await stream.publish_many(load.requests(worn))
    for delivery in range(1, MAX_DELIVER):
        replies = await _deliver(client, len(worn))
        if delivery < MAX_DELIVER - 1:
            await client.send(b"".join(b"PUB %b 4\r\n-NAK\r\n" % reply.encode() for reply in replies))
            await client.ping()


async def _deliver(client: RawClient, count: int) -> Sequence[str]:
    """Have that many messages delivered. Returns where each is answered."""
    inbox = client.new_inbox()
    deliveries = await client.subscribe(inbox)
    pull = json.dumps({"batch": count, "expires": 5_000_000_000}).encode()
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{SOURCE}.{DURABLE}", pull, None, inbox)
    replies = [str((await deliveries.next()).reply) for _ in range(count)]
    await deliveries.unsubscribe()
    return replies
