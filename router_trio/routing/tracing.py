"""The port for traces: what routing asks of whoever makes spans.

Routing never calls an SDK for an unsampled message. Which ones are sampled is asked once a batch; for the many that
aren't the answer costs a look at the `traceparent` if there are headers, and next to nothing if there are none. The
default samples nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage

Attributes = tuple[tuple[str, str], ...]
"""Attributes of a span, by name. They are compared as a whole, so they can be hashed."""


class MessageTrace(Protocol):
    """The spans of one sampled message: a CONSUMER span `process ROUTE` and a PRODUCER span for each destination."""

    def send(self, destination: str, connection: str, size: int) -> bytes:
        """Begin a span `send DESTINATION` (a template). Returns the `traceparent` value for the outgoing message."""
        ...

    def sent(self, destination: str, fate: Fate) -> None:
        """The send to this destination has its fate: ends its span."""

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """The last send to this destination was never accepted: ends its span, and fails the message."""

    def failed(self, error_type: str, detail: str) -> None:
        """The message failed in the router."""

    def end(self) -> None:
        """Every destination is settled: ends the `process` span. Also ends what is open. Called exactly once."""


class Tracing(Protocol):
    """Decides what is sampled and makes its spans."""

    active: bool
    """Whether anything would ever be sampled; asked once a batch."""

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """The indexes of the sampled messages of a batch, in order. Each of them is then asked of `begin`."""
        ...

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Return the same for messages without headers, of which only the number matters."""
        ...

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Return the same for messages that are PUB and HPUB frames already."""
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
        """The trace of a message that is sampled. `template` is the source's subject pattern, never a raw subject.

        `source` names the source. `sequence` and `deliveries` are None for a message that has neither. Returns None if
        tracing has ended since.
        """


class NoTracing:
    """Traces nothing."""

    active = False

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Nothing is sampled."""
        return ()

    def sampled_plain(self, count: int) -> Sequence[int]:
        """Nothing is sampled."""
        return ()

    def sampled_frames(self, frames: Sequence[bytes]) -> Sequence[int]:
        """Nothing is sampled."""
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
        """Nothing is sampled."""
        return None
