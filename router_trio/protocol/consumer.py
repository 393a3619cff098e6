"""A durable consumer as a route wants it, and as the server reports it."""

from __future__ import annotations

from dataclasses import dataclass, field

from router_trio.protocol.stream_config import StreamSubjects


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """The durable pull consumer that a route wants. `ack_wait` in seconds; `max_deliver` -1 for no limit."""

    stream: str
    durable: str
    filters: tuple[str, ...]
    """Patterns that don't overlap, none for the whole stream."""
    ack_wait: float
    max_deliver: int
    max_ack_pending: int
    """Where the server allows fewer, as many as it allows are enough, but for `least_ack_pending`."""
    start_sequence: int | None = None
    stream_created: str | None = None
    """If the durable has to be created again: where to start, and in which incarnation of the stream that counts."""
    last_sequence: int = 0
    last_time: int = 0
    """The last message that is known of that incarnation, 0 for none; its time in nanoseconds since 1970."""
    standby: bool = False
    """Of all that open it one gets messages: whoever has the lead, by `pin`. See `Link.take_the_lead`."""
    pin: str | None = None
    others_seen: bool = False
    """True if the opener had it before and missed deliveries: only listening tells if another process has them."""
    deliver: str = "all"
    """Where it begins if it is made, and nothing is known of its stream: `all`, `new` or a time in UTC (RFC 3339)."""
    least_ack_pending: int = 0
    """Messages that the route has in hand at most (`max_in_flight`)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The position of a durable when it was opened.

    `deliveries` counts those so far. `in_use`: somebody else seems to take from it too; None if that can't be told.
    Nothing up to the sequence `passed` is delivered by it any more.
    """

    deliveries: int
    in_use: bool | None
    passed: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A durable as it is now. `paused` says that somebody has paused it, and until when; None if it goes on.

    `unacked` messages have no ack, of `max_ack_pending` that may (0 or less: any number). `delivered` is the last that
    was delivered for the first time, and `undelivered` of the stream were not yet. `deliveries` counts those so far,
    also those of a message that was delivered before. All up to the sequence `passed` is settled, or was never to be
    delivered. `cut_off` says that its server has lost its cluster, None if nothing shows that.
    """

    paused: str | None
    unacked: int
    max_ack_pending: int
    delivered: int
    undelivered: int
    deliveries: int = 0
    passed: int = 0
    cut_off: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits by which the server acts by itself on what a durable delivers, -1 for no limit.

    `retention` is the stream's: with any but `limits` it deletes what its consumers are done with. `subjects` are all
    that the stream holds, none if that is not known, and `stores` says what it takes. `deliver` says where the durable
    began, as `ConsumerSpec.deliver` does or in the server's words; `""` if it took another one's place. Unused for
    `expires_after` seconds, the durable is deleted; 0: never. At most `max_waiting` requests may wait at a time; 0: any
    number.
    """

    max_deliver: int
    max_ack_pending: int
    retention: str
    subjects: tuple[str, ...] = field(default=(), compare=False)
    deliver: str = "all"
    expires_after: float = 0.0
    max_waiting: int = field(default=0, compare=False)
    stores: StreamSubjects = field(default=StreamSubjects(), compare=False)
