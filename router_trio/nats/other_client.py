"""Creates and reads streams with a client of its own, outside of any router: the demo checks a router with it.

Each function opens a nats-py client in a thread of its own, does its job, and closes the client. No router's messages
pass through here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import nats.errors
import nats.js.errors
import trio
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from router_trio.errors import LinkError, SourceError, reasons
from router_trio.errors.quotes import redact, text_of_error
from router_trio.nats.jetstream.api import ApiError, StreamInfo, stream_info

T = TypeVar("T")

_BATCH = 500
_ANSWER_WITHIN = 5.0


class StoredMessage(NamedTuple):
    """A message as a stream holds it."""

    sequence: int
    subject: str
    payload: bytes


async def add_streams(url: str, streams: Mapping[str, Sequence[str]]) -> None:
    """Create streams, each with its subjects, on the server at `url`.

    Raises `LinkError` if the server can't be reached, `SourceError` if it refuses a stream. Blocks for a few round
    trips; if it is cancelled, some streams may exist.
    """

    async def add(client: Client) -> None:
        for name, subjects in streams.items():
            await _ask(client, f"STREAM.CREATE.{name}", {"name": name, "subjects": list(subjects)})

    await _with_client(url, add)


async def count_messages(url: str, stream: str) -> int:
    """Return how many messages the stream holds. Raises and blocks as `stream_messages` does."""

    async def count(client: Client) -> int:
        return (await _ask(client, f"STREAM.INFO.{stream}")).messages

    return await _with_client(url, count)


async def stream_messages(url: str, stream: str) -> list[StoredMessage]:
    """Return all messages that the stream holds at the start of the call, in order.

    Raises `LinkError` if the server can't be reached, `SourceError` if there is no such stream or it stops answering.
    Blocks until all are read; can be cancelled.
    """

    async def read(client: Client) -> list[StoredMessage]:
        found: list[StoredMessage] = []
        expected = (await _ask(client, f"STREAM.INFO.{stream}")).messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await client.jetstream(timeout=_ANSWER_WITHIN).pull_subscribe("", stream=stream, config=config)
        while len(found) < expected:
            for message in await subscription.fetch(min(_BATCH, expected - len(found)), timeout=_ANSWER_WITHIN):
                found.append(StoredMessage(message.metadata.sequence.stream, message.subject, message.data))
        return found

    return await _with_client(url, read)


async def _ask(client: Client, request: str, body: Mapping[str, object] | None = None) -> StreamInfo:
    payload = json.dumps(body).encode() if body else b""
    return stream_info((await client.request(f"$JS.API.{request}", payload, _ANSWER_WITHIN)).data)


async def _with_client(url: str, job: Callable[[Client], Awaitable[T]]) -> T:
    async def ignore(error: Exception) -> None:
        """Ignore errors that are raised as well; without this callback nats-py prints a traceback."""

    async def work() -> T:
        client = Client()
        try:
            await client.connect(
                url, error_cb=ignore, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0
            )
            return await job(client)
        finally:
            await client.close()

    try:
        return await trio.to_thread.run_sync(asyncio.run, work(), limiter=trio.CapacityLimiter(1))
    except nats.js.errors.Error as error:
        detail = f"JetStream at {redact(url)} refused: {text_of_error(error)}"
        raise SourceError(detail, reason=reasons.JETSTREAM) from error
    except (ApiError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # Except for the first, these are raised for a malformed answer: ValueError by us, the others by nats-py,
        # which parses messages here.
        detail = f"JetStream at {redact(url)} refused: {text_of_error(error)}"
        raise SourceError(detail, reason=reasons.JETSTREAM) from error
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise LinkError(f"can't talk to the server at {redact(url)}: {text_of_error(error)}") from error
