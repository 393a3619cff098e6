"""What is published while things go wrong: straight to the server, past the proxies, by a client that comes back.

Each message carries its number. Into a stream it is published until a PubAck came, with the same Msg-Id, so that the
source holds all of them, in order, whatever happened. To a core subject it is published once: nobody promises more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from tests.raw_jetstream import JetStream
from tests.raw_nats import RawClient, RawNatsError, connect

SUBJECTS = 10
CHUNKS = 40
"""Writes in which all messages go out, spread over the time of the schedule."""

LARGE_EVERY = 50
LARGE = 3_000
"""Bytes: more than `faults.less_payload` leaves room for."""

ATTEMPT_WITHIN = 1.0
TRY_AGAIN_AFTER = 0.05

TROUBLE = (RawNatsError, OSError, trio.BrokenResourceError, trio.TooSlowError)
"""What a client of a server that comes and goes meets."""


def payload(number: int) -> bytes:
    """A payload with this number in it; some are large."""
    filling = LARGE if number % LARGE_EVERY == 0 else 64
    return b"#%d;" % number + b"." * filling


def subject(root: str, number: int) -> str:
    """The subject of the message with this number."""
    return f"{root}.{number % SUBJECTS}"


@asynccontextmanager
async def client(url: str) -> AsyncIterator[RawClient]:
    """A client with the permission to do anything."""
    async with connect(url, user="load", password="load") as connected:
        yield connected


async def fill_stream(url: str, messages: int, seconds: float) -> None:
    """Publish to `source.*` until the stream has all."""
    for chunk, pause in _chunks(messages, seconds):
        await trio.sleep(pause)
        requests = [(subject("source", n), payload(n), [("Nats-Msg-Id", f"id-{n}")]) for n in chunk]
        while True:
            try:
                async with client(url) as publisher:
                    await _published(publisher, requests)
                break
            except TROUBLE:
                await trio.sleep(TRY_AGAIN_AFTER)


async def _published(publisher: RawClient, requests: Sequence[tuple[str, bytes, list[tuple[str, str]]]]) -> None:
    with trio.fail_after(ATTEMPT_WITHIN):
        await JetStream(publisher).publish_many(requests)


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
