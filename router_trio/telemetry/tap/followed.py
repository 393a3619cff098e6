"""Follow messages of one route until they have their fates, for the taps on that route.

A followed message is routed on its own, like one that is sampled for a trace. That costs more than routing it as part
of a batch, so at most `MAX_PER_SECOND` messages are followed, and none while no tap has room. All others are only
counted, in the ledger of their route.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from router_trio.message import Fate
from router_trio.protocol.framing import RawMessage
from router_trio.routing.policy.retry import Failure
from router_trio.routing.tracing import MessageTrace, SpanIds
from router_trio.states import Exemplar

MAX_PER_SECOND = 1000
"""Maximum number of messages that all taps of one process follow in a second. Further ones are only counted."""


class TakesFollowed(Protocol):
    """The part of a tap that takes followed messages."""

    @property
    def has_room(self) -> bool:
        """True if it can take one more message."""
        ...

    def take(self, message: FollowedMessage) -> None:
        """Keep a settled message until it is read, if the tap shows messages with that fate and has room."""


class FollowedMessage:
    """The `MessageTrace` of a followed message: its copies with their fates, and finally its own fate.

    Passes every call on to `span`, the trace of the message if it is sampled. Calls `settled` once, with itself.
    """

    __slots__ = ("_began", "_settled", "_span", "failure", "fate", "raw", "seconds", "sends", "settled_at")

    def __init__(self, raw: RawMessage, span: MessageTrace | None, settled: Callable[[FollowedMessage], None]) -> None:
        self.raw: RawMessage = raw
        self.sends: list[tuple[str, Fate]] = []
        """The template of each destination that a copy was offered to, and the fate of the copy."""
        self.fate: str = ""
        self.failure: Failure | None = None
        self.settled_at: float = 0.0
        """Unix time, in seconds, at which it got its fate."""
        self.seconds: float = 0.0
        """Seconds from the beginning of this attempt to its fate, by a monotonic clock."""
        self._span = span
        self._settled = settled
        self._began = time.perf_counter()

    @property
    def process(self) -> SpanIds | None:
        return None if self._span is None else self._span.process

    def send(self, destination: str, connection: str, size: int) -> bytes | None:
        return None if self._span is None else self._span.send(destination, connection, size)

    def sent(self, destination: str, fate: Fate) -> None:
        self.sends.append((destination, fate))
        if self._span is not None:
            self._span.sent(destination, fate)

    def refused(self, destination: str, reason: str, detail: str) -> None:
        self.sends.append((destination, Fate("failed", reason)))
        if self._span is not None:
            self._span.refused(destination, reason, detail)

    def failed(self, error_type: str, detail: str) -> None:
        if self._span is not None:
            self._span.failed(error_type, detail)

    def end(self, seconds: float) -> Exemplar | None:
        return None if self._span is None else self._span.end(seconds)

    def settled(self, fate: str, failure: Failure | None) -> None:
        if self._span is not None:
            self._span.settled(fate, failure)
        if self.fate:
            return
        self.fate, self.failure = fate, failure
        self.settled_at = time.time()
        self.seconds = time.perf_counter() - self._began
        self._settled(self)


class RouteFollower:
    """The `Follower` of one route, for the `taps` on it. `take_up_to` limits the rate of all routes together."""

    def __init__(self, take_up_to: Callable[[int], int]) -> None:
        self.taps: Sequence[TakesFollowed] = ()
        self._take_up_to = take_up_to

    def room(self, count: int) -> int:
        if any(tap.has_room for tap in self.taps):
            return self._take_up_to(count)
        return 0

    def follow(self, raw: RawMessage, span: MessageTrace | None) -> MessageTrace:
        return FollowedMessage(raw, span, self._settled)

    def _settled(self, message: FollowedMessage) -> None:
        for tap in self.taps:
            tap.take(message)
