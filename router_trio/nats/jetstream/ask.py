"""One request to the JetStream API and its answer, through nats-py, which knows who may hear it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nats.aio.client import Client

from router_trio.errors import SourceError
from router_trio.nats.asyncio_loop import aio_as_trio
from router_trio.nats.jetstream.answers import AnswerError

T = TypeVar("T")

API_TIMEOUT = 5.0


def subject_of(request: str, domain: str = "") -> str:
    """Return the subject of a request to the JetStream of this domain, or to that of the account."""
    return f"$JS.{domain}.API.{request}" if domain else f"$JS.API.{request}"


async def ask(
    client: Client,
    request: str,
    body: bytes,
    read: Callable[[bytes], T],
    within: float = API_TIMEOUT,
    domain: str = "",
) -> T:
    """Send a request below `$JS.API.`, or below that of a domain, and read its answer. Can be cancelled.

    Raises what `read` does, with the request named, `TimeoutError` without an answer within so many seconds, and
    `nats.errors.Error`.
    """
    subject = subject_of(request, domain)
    answer = await aio_as_trio(client.request)(subject, body, within)
    try:
        return read(answer.data)
    except AnswerError as error:
        raise SourceError(
            f"the answer to {subject} is not an answer of JetStream: {error}", reason="bad_answer"
        ) from error
