"""One request to the JetStream API and its answer, through nats-py, which knows who may hear it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio_asyncio
from nats.aio.client import Client

from router_trio.errors import SourceError
from router_trio.nats.answers import AnswerError

T = TypeVar("T")

API_TIMEOUT = 5.0


async def ask(client: Client, request: str, body: bytes, read: Callable[[bytes], T], within: float = API_TIMEOUT) -> T:
    """Send a request below `$JS.API.` and read its answer. Can be cancelled.

    Raises what `read` does, with the request named, `TimeoutError` without an answer within so many seconds, and
    `nats.errors.Error`.
    """
    answer = await trio_asyncio.aio_as_trio(client.request)(f"$JS.API.{request}", body, within)
    try:
        return read(answer.data)
    except AnswerError as error:
        raise SourceError(
            f"the answer to $JS.API.{request} is not one of JetStream: {error}", reason="bad_answer"
        ) from error
