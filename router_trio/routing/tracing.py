"""The interface through which routing creates traces, and through which a tap follows messages.

Routing never calls an SDK for an unsampled message. It asks once a batch which messages are sampled. For an unsampled
message with headers that costs a look at its `traceparent`, without headers next to nothing. The default samples
nothing.

A tap uses the same interface: while one follows a route, messages are sampled for it, and their traces report their
fates to it. Otherwise no code of a tap runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage
from router_trio.routing.policy.retry import Failure
from router_trio.states import Exemplar

Attributes = tuple[tuple[str, str], ...]
"""Attributes of a span, by name. Hashable, since sets of attributes are compared."""

SpanIds = tuple[int, int, int]
"""The trace id, the span id and the flags of a span."""


class MessageTrace(Protocol):
    """The spans of one sampled message: a CONSUMER span `process ROUTE` and a PRODUCER span for each destination."""

    @property
    def process(self) -> SpanIds | None:
        """The ids of the span `process ROUTE`; None for a message that only a tap follows."""

    def send(self, destination: str, connection: str, size: int) -> bytes | None:
        """Begin a span `send DESTINATION` (a template). Returns the `traceparent` value for the outgoing message.

        Returns None for a message that only a tap follows, which is sent unchanged.
        """

    def sent(self, destination: str, fate: Fate) -> None:
        """End the span of the send to this destination, which has its fate."""

    def refused(self, destination: str, reason: str, detail: str) -> None:
        """End the span of the last send to this destination, which was never accepted, and fail the message."""

    def failed(self, error_type: str, detail: str) -> None:
        """Record that the message failed in the router."""

    def end(self, seconds: float) -> Exemplar | None:
        """End the `process` span and all open ones, since every destination is settled. Called exactly once.

        Returns the exemplar of a message that was received `seconds` ago, for the durations of its route. Returns None
        for a message that only a tap follows.
        """

    def settled(self, fate: str, failure: Failure | None) -> None:
        """Record the fate of the message, and why it failed. Not called after an attempt that is repeated."""


Attach = Callable[[RawMessage, MessageTrace | None], None]
"""Makes the span of a message, or that of its sender, the parent of the spans that are begun in this context."""


class Tracing(Protocol):
    """Decides which messages are sampled, and creates their spans."""

    possible: bool
    """False if messages are never sampled."""

    active: bool
    """True if messages may be sampled now; read once a batch."""

    @property
    def attach(self) -> Attach | None:
        """Return what to call in the context of each call of a handler; None while no handler can begin spans."""

    def sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        """Return the indexes of the sampled messages of a batch, in order.

        `begin` is then called for each of them, in this order, before the next batch of their route.
        """
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

    possible = False
    active = False
    attach: Attach | None = None

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


class Follower(Protocol):
    """Follows messages of one route until they have their fates: the taps on the route."""

    def room(self, count: int) -> int:
        """Return how many of `count` messages to follow now."""
        ...

    def follow(self, raw: RawMessage, span: MessageTrace | None) -> MessageTrace:
        """Return the trace of a message, which passes everything on to `span` if the message is sampled as well."""
        ...


def _stay() -> None:
    """Do nothing, for routes that have no faster way for messages that are not followed."""


class RouteTracing:
    """The `Tracing` of one route: its spans, and the messages that a tap follows.

    While nothing is followed, its methods are those of the spans themselves, so taps cost nothing.
    """

    active: bool
    begin: Callable[..., MessageTrace | None]
    sampled: Callable[[Sequence[RawMessage]], Sequence[int]]
    sampled_plain: Callable[[int], Sequence[int]]

    __slots__ = (
        "__weakref__",
        "_divert",
        "_follower",
        "_spans",
        "_to_follow",
        "active",
        "begin",
        "route",
        "sampled",
        "sampled_plain",
    )

    def __init__(self, route: str, spans: Tracing) -> None:
        self.route: str = route
        """The name of the route."""
        self._spans = spans
        self._divert: Callable[[], None] = _stay
        self._to_follow = 0
        self.follow_by(None)

    def when_followed(self, divert: Callable[[], None]) -> None:
        """Call `divert` when messages of the route begin to be followed: they are then not forwarded on arrival."""
        self._divert = divert
        if self.followed:
            divert()

    def retire(self) -> None:
        """Follow no more messages, since the route has ended."""
        self._divert = _stay
        self.follow_by(None)

    @property
    def attach(self) -> Attach | None:
        """Return what to call in the context of each call of the handler, as `Tracing.attach` does."""
        return self._spans.attach

    @property
    def followed(self) -> bool:
        """True while a tap follows messages of the route."""
        return self._follower is not None

    def follow_by(self, follower: Follower | None) -> None:
        """Let `follower` follow messages from the next batch on; None: follow no more of them."""
        self._follower = follower
        if follower is None:
            self.active = self._spans.possible
            self.sampled, self.sampled_plain = self._spans.sampled, self._spans.sampled_plain
            # Some messages of the last batch may not have begun.
            self.begin = self._begin if self._to_follow else self._spans.begin
        else:
            self.active = True
            self.sampled, self.sampled_plain, self.begin = self._sampled, self._sampled_plain, self._begin
            self._divert()

    def settled_at_once(self, raw: RawMessage, fate: str) -> None:
        """Report the fate of a message that was not routed, if messages of the route are followed."""
        if self._follower is not None and self._follower.room(1):
            self._follower.follow(raw, None).settled(fate, None)

    def _begin(self, route: str, template: str, raw: RawMessage, **about: Any) -> MessageTrace | None:
        """Begin the trace of a sampled message, as `Tracing.begin` does, or of one of the messages to follow.

        These are the first ones of each batch.
        """
        if not self._to_follow:
            return self._spans.begin(route, template, raw, **about)
        self._to_follow -= 1
        span = self._spans.begin(route, template, raw, **about) if self._spans.sampled((raw,)) else None
        return span if self._follower is None else self._follower.follow(raw, span)

    def _sampled(self, batch: Sequence[RawMessage]) -> Sequence[int]:
        return self._among(len(batch), lambda followed: self._spans.sampled(batch[followed:]))

    def _sampled_plain(self, count: int) -> Sequence[int]:
        return self._among(count, lambda followed: self._spans.sampled_plain(count - followed))

    def _among(self, count: int, spans: Callable[[int], Sequence[int]]) -> Sequence[int]:
        """Return the indexes of the messages to follow, which are the first ones, and of those that `spans` samples."""
        assert self._follower is not None
        followed = self._to_follow = self._follower.room(count)
        rest = spans(followed) if followed < count else ()
        return [*range(followed), *(followed + index for index in rest)]
