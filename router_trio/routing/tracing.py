"""The interface through which routing creates traces.

Routing never calls an SDK for an unsampled message. It asks once a batch which messages are sampled. For an unsampled
message with headers that costs a look at its `traceparent`, without headers next to nothing. The default samples
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage
from router_trio.states import Exemplar

Attributes = tuple[tuple[str, str], ...]
"""Attributes of a span, by name. Hashable, since sets of attributes are compared."""


class MessageTrace(Protocol):
    """The spans of one sampled message: a CONSUMER span `process ROUTE` and a PRODUCER span for each destination."""

    def send(self, destination: str, connection: str, size: int) -> bytes:
        """Begin a span `send DESTINATION` (a template). Returns the `traceparent` value for the outgoing message."""
        ...

    def sent(self, destination: str, fate: Fate) -> None:
        """End the span of the send to this destination, which has its fate."""

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """End the span of the last send to this destination, which was never accepted, and fail the message."""

    def failed(self, error_type: str, detail: str) -> None:
        """Record that the message failed in the router."""

    def end(self, seconds: float) -> Exemplar:
        """End the `process` span and all open ones, since every destination is settled. Called exactly once.

        Returns the exemplar of a message that was received `seconds` ago, for the durations of its route.
        """
        ...


class Tracing(Protocol):
    """Decides which messages are sampled, and creates their spans."""

    active: bool
    """True if messages may be sampled at all; read once a batch."""

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Return the indexes of the sampled messages of a batch, in order. `begin` is then called for each of them."""
        ...

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Return the same for `count` messages without headers."""
        ...

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Return the same for messages in the form of PUB and HPUB frames."""
        ...

    def begin(
        self,
        route: str,
        template: str,
        raw: RawMessage,
        *,
        source: Attributes = (),
        sequence: int | None = None,
        deliveries: int | None = None,
    ) -> MessageTrace | None:
        """Begin the trace of a sampled message. `template` is the source's subject pattern, never a raw subject.

        `source` names the source. `sequence` and `deliveries` are None if the message has neither. Returns None if
        tracing has ended since.
        """


class NoTracing:
    """Samples nothing."""

    active = False

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Return no message."""
        return ()

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Return no message."""
        return ()

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Return no message."""
        return ()

    def begin(
        self,
        route: str,
        template: str,
        raw: RawMessage,
        *,
        source: Attributes = (),
        sequence: int | None = None,
        deliveries: int | None = None,
    ) -> MessageTrace | None:
        """Return no trace."""
        return None
