"""The load during the faults: published straight to the server, past the proxies, by a client that reconnects.

Each message carries its number. To a stream it is published until a PubAck arrives, with the same Msg-Id, so that the
source holds all of them, in order, whatever happened. To a core subject it is published once: more is not promised.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawNatsError, connect

SUBJECTS = 10
CHUNKS = 40
"""Number of writes for all messages, spread over the duration of the schedule."""

LARGE_EVERY = 50
LARGE = 3_000
"""Payload size in bytes: more than `faults.less_payload` leaves room for."""

ATTEMPT_WITHIN = 1.0
TRY_AGAIN_AFTER = 0.05

TROUBLE = (RawNatsError, OSError, trio.BrokenResourceError, trio.TooSlowError)
"""Errors that a client of a restarting server may get."""


_NUMBER = re.compile(rb"#(\d+);")

Request = tuple[str, bytes, list[tuple[str, str]]]
"""Subject, payload and headers."""


def payload(number: int) -> bytes:
    """Return a payload that contains this number; some are large."""
    filling = LARGE if number % LARGE_EVERY == 0 else 64
    return b"#%d;" % number + b"." * filling


def subject(root: str, number: int) -> str:
    """Return the subject of the message with this number."""
    return f"{root}.{number % SUBJECTS}"


def numbers(text: bytes) -> list[int]:
    """Return the numbers of the messages in these frames or this payload; none for data not from the load."""
    return [int(found) for found in _NUMBER.findall(text)]


class Taken(NamedTuple):
    """A message that the source has stored: by which attempt, and when that attempt began."""

    number: int
    began: float
    attempts: int


@asynccontextmanager
async def client(url: str) -> AsyncIterator[RawClient]:
    """Connect a client with all permissions."""
    async with connect(url, user="load", password="load") as connected:
        yield connected


async def fill_stream(url: str, messages: int, seconds: float, noise: int = 0) -> Sequence[Taken]:
    """Publish to `source.*` until the stream has all, with `noise` messages of `noise.*` before each.

    Return when each message was taken.
    """
    taken: list[Taken] = []
    for chunk, pause in _chunks(messages, seconds):
        await trio.sleep(pause)
        attempts = 0
        while True:
            attempts += 1
            began = trio.current_time()
            try:
                async with client(url) as publisher:
                    await _published(publisher, list(requests(chunk, noise)))
                break
            except TROUBLE:
                await trio.sleep(TRY_AGAIN_AFTER)
        taken += [Taken(number, began, attempts) for number in chunk]
    return taken


def requests(chunk: Iterable[int], noise: int = 0) -> Iterator[Request]:
    """Yield the publishes to a stream for these numbers."""
    for number in chunk:
        for other in range(noise):
            yield f"noise.{other}", b"noise", [("Nats-Msg-Id", f"noise-{number}-{other}")]
        yield subject("source", number), payload(number), [("Nats-Msg-Id", f"id-{number}")]


async def _published(publisher: RawClient, messages: Sequence[Request]) -> None:
    with trio.fail_after(ATTEMPT_WITHIN):
        await JetStream(publisher).publish_many(messages)


async def publish_core(url: str, messages: int, seconds: float) -> None:
    """Publish to `in.*`, each message once."""
    for chunk, pause in _chunks(messages, seconds):
        await trio.sleep(pause)
        try:
            async with client(url) as publisher:
                with trio.fail_after(ATTEMPT_WITHIN):
                    await publisher.publish_many([(subject("in", n), payload(n)) for n in chunk])
                    await publisher.ping()
        except TROUBLE:
            await trio.sleep(TRY_AGAIN_AFTER)


def _chunks(messages: int, seconds: float) -> list[tuple[range, float]]:
    size = max(1, messages // CHUNKS)
    return [(range(start, min(start + size, messages)), seconds / CHUNKS) for start in range(0, messages, size)]
