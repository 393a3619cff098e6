"""The changes that a variant makes to a scene: how streams, durable and route are created, and how many routers share
it.

The faults of a seed are the same in each variant. The additional promises of each are in `verdict`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.resilience.chaos import keyed, load
from tests.resilience.chaos.schedule import Schedule, Variant
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient

DURABLE = "router"
SINK = "SINK"
SOURCE = "SOURCE"

FILTER = "source.*"
"""The subjects of the source that a route takes."""

ACK_WAIT = 2.0
"""Seconds."""

MAX_DELIVER = 3
WORN = 100
"""Messages for which a durable with `max_deliver` has used up all deliveries but one before a router starts."""

NOISE = 19
"""Messages in a sparse source that the route's filter skips, before each that it takes."""


def routers(variant: Variant) -> int:
    """Return how many routers run at the same time."""
    return 2 if variant == "two-routers" else 1


def url(variant: Variant, proxy: TcpProxy) -> str:
    """Return the URL at which a router reaches its server."""
    return proxy.url.replace("nats://", "ws://") if variant == "websocket" else proxy.url


def noise(variant: Variant) -> int:
    """Return how many messages outside of any filter are published before each of the others."""
    return NOISE if variant == "sparse" else 0


def keeps_order(schedule: Schedule) -> bool:
    """Return False where the order of a subject is not promised.

    Routers that share a durable promise none. Of a core subject, each destination gets its messages in order; weighted
    destinations get a part of each subject.
    """
    if schedule.variant == "content" and schedule.kind == "core":
        return str(by_content(schedule.seed, {"to": [{}]})["strategy"]) != "weighted"
    return schedule.variant != "two-routers"


def by_content(seed: int, route: dict[str, Any]) -> dict[str, Any]:
    """Return a route that decides by content in a way that the seed draws, and sends each message to the same place.

    So it has the same promises as the plain one. All expressions have a value for every message.
    """
    dice = random.Random(f"content {seed}")
    (to,) = route["to"]
    some = json.dumps([str(number) for number in sorted(dice.sample(range(load.SUBJECTS), dice.randint(1, 9)))])
    drawn: dict[str, Any] = {**route, "when": dice.choice(["size > 0", 'payload != b""', 'subject.startsWith("")'])}
    strategy = drawn["strategy"] = dice.choice(["all", "first_match", "weighted", "sticky", "fallback"])
    if strategy == "all":
        drawn["to"] = [{**to, "when": f"tokens[1] in {some}"}, {**to, "when": f"!(tokens[1] in {some})"}]
    elif strategy == "first_match":
        drawn["to"] = [{**to, "when": f"tokens[1] in {some}"}, to]
    else:
        drawn["to"] = [{**to, **({} if strategy == "fallback" else {"weight": dice.randint(1, 5)})} for _ in range(3)]
    if strategy == "sticky":
        drawn["key"] = dice.choice(["subject", "tokens[1]"])
    if dice.random() < 0.5:
        changed = {"payload": "payload", "headers": {"set": {"X-Of": "subject"}, "remove": ["X-None"]}}
        drawn["to"] = [{**one, **changed} for one in drawn["to"]]
    return drawn


def by_key(seed: int) -> dict[str, Any]:
    """Return the settings of a route by a key that the seed draws, with several concurrent handler calls."""
    handler = "tests.resilience.chaos.keyed:" + ("ten_keys" if key_of(seed) == keyed.KEYS[0] else "two_keys")
    concurrency = random.Random(f"concurrency {seed}").choice((2, 4, 16))
    return {"key": key_of(seed), "concurrency": concurrency, "handler": handler}


def key_of(seed: int) -> str:
    """Return the key that a seed draws."""
    return random.Random(f"keys {seed}").choice(keyed.KEYS)


async def create_source(stream: JetStream, variant: Variant) -> None:
    """Create the stream that the routers read."""
    subjects = [FILTER, "noise.*"] if variant == "sparse" else [FILTER]
    await stream.create_stream(SOURCE, subjects, storage=_storage(variant))


async def create_sink(stream: JetStream, schedule: Schedule) -> None:
    """Create the stream that keeps what the routers send."""
    subject = "sink.*" if schedule.kind == "stream" else "out.*"
    await stream.create_stream(SINK, [subject], storage=_storage(schedule.variant))


def dies_with_its_server(variant: Variant) -> bool:
    """Return True if the streams are in memory: a restarted server knows nothing of them."""
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
    """Have `count` messages delivered. Return the reply subject of each."""
    inbox = client.new_inbox()
    deliveries = await client.subscribe(inbox)
    pull = json.dumps({"batch": count, "expires": 5_000_000_000}).encode()
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{SOURCE}.{DURABLE}", pull, None, inbox)
    replies = [str((await deliveries.next()).reply) for _ in range(count)]
    await deliveries.unsubscribe()
    return replies
