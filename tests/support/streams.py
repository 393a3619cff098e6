"""Streams SOURCE and SINK with numbered messages, for tests of routes from a stream to a stream.

Message `n` has the subject `source.K` with `K = n % 10`, the payload `n` and the `Nats-Msg-Id` `id-n`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawSubscription, connect
from tests.support.settings import failing_of, stream_route

SUBJECTS = 10

ROUTE = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*", max_in_flight=1024)
"""Size of a part of the messages, so that others remain when something happens."""


def route(**source: Any) -> dict[str, Any]:
    """Return `ROUTE` with more keys of `[routes.from]`, and the keys about failures."""
    failing = failing_of(source)
    return {**ROUTE, "from": {**ROUTE["from"], **source}, **failing}


async def source_and_sink(client: RawClient, count: int = 0, **sink: Any) -> JetStream:
    """Create both streams, and fill the first with messages numbered from 0. `sink` is configuration of the second."""
    stream = JetStream(client)
    await stream.create_stream("SOURCE", ["source.*"])
    await stream.create_stream("SINK", ["sink.*"], **sink)
    await publish_numbered(stream, range(count))
    return stream


async def publish_numbered(stream: JetStream, numbers: Iterable[int]) -> None:
    """Publish the messages with these numbers to SOURCE."""
    await stream.publish_many([(f"source.{n % SUBJECTS}", b"%d" % n, [("Nats-Msg-Id", f"id-{n}")]) for n in numbers])


async def numbers_in(url: str, name: str = "SINK") -> list[int]:
    """Return the numbers that a stream holds, in its order."""
    async with connect(url) as client:
        return [int(message.payload) for message in await JetStream(client).stream_messages(name)]


async def assert_sink_is_whole(url: str, count: int, *, in_order: bool = True) -> None:
    """Assert that each of the messages is in SINK, once, and those of a subject in order."""
    numbers = await numbers_in(url)
    assert sorted(numbers) == list(range(count))
    for subject in range(SUBJECTS) if in_order else ():
        own = [number for number in numbers if number % SUBJECTS == subject]
        assert own == sorted(own), f"sink.{subject} is out of order: {_first_fall(own)}"


def _first_fall(numbers: list[int]) -> str:
    at = next(index for index in range(1, len(numbers)) if numbers[index] < numbers[index - 1])
    return f"{numbers[max(0, at - 3) : at + 3]} from the {max(0, at - 3)}th of {len(numbers)}"


async def numbers_from(subscription: RawSubscription, count: int, within: float = 5.0) -> list[int]:
    """Return the payloads of the next messages; each must arrive within that time."""
    return [int((await subscription.next(within)).payload) for _ in range(count)]
