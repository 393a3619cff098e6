"""Requests to the JetStream API and their answers, through nats-py, which knows who may hear them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from router_trio.errors import SourceError, reasons
from router_trio.nats.control_plane.plane import ControlPlane
from router_trio.nats.denials import Denials
from router_trio.nats.jetstream.answers import AnswerError
from router_trio.protocol import framing, permissions

T = TypeVar("T")

API_TIMEOUT = 5.0

API = permissions.API
"""What its subjects begin with where a connection says nothing else."""


class Api:
    """The JetStream API of one link. `prefix` is what its subjects begin with, as for a domain or an import."""

    __slots__ = ("control", "deaf", "denials", "prefix")

    def __init__(self, control: ControlPlane, denials: Denials, prefix: str = API) -> None:
        self.control: ControlPlane = control
        self.denials: Denials = denials
        self.prefix: str = prefix
        self.deaf: str | None = None
        """Why no answer can be received, None if nothing speaks against it."""

    def subject_of(self, request: str) -> str:
        """Return the subject of a request."""
        return f"{self.prefix}.{request}"

    async def ask(self, request: str, body: bytes, read: Callable[[bytes], T], within: float = API_TIMEOUT) -> T:
        """Send a request and read its answer. Can be cancelled.

        Raises what `read` does, with the request named, `TimeoutError` without an answer within so many seconds,
        `SourceError` (`permission_denied`) if the server refuses the request or the subscription to its answer, and
        `nats.errors.Error`.
        """
        subject = self.subject_of(request)
        client = await self.control.ready_client()
        try:
            with self.denials.raised(framing.wire(subject)):
                answer = await client.request(subject, body, within)
        except TimeoutError:
            if self.deaf is None:
                raise
            told = f"the answer to {subject} can't be received: {self.deaf}"
            raise SourceError(told, reason=reasons.PERMISSION_DENIED) from None
        try:
            return read(answer)
        except AnswerError as error:
            raise SourceError(
                f"the answer to {subject} is not an answer of JetStream: {error}", reason=reasons.BAD_ANSWER
            ) from error


def no_jetstream(prefix: str) -> str:
    """Return the text for a request that nobody answers."""
    if prefix == API:
        return "JetStream is not enabled on this server or for this account"
    return (
        f"nobody answers below {prefix}; correct `domain` or `api_prefix` of the connection, or enable JetStream there"
    )
