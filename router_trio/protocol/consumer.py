"""A durable consumer as a route requests it, and as the server reports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from router_trio.errors import SourceError, reasons
from router_trio.protocol.metadata import Metadata
from router_trio.protocol.stream_config import StreamSubjects


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """The durable pull consumer that a route requests. `ack_wait` is in seconds; `max_deliver` is -1 for no limit."""

    stream: str
    durable: str
    filters: tuple[str, ...]
    """Patterns that don't overlap; empty for the entire stream."""
    ack_wait: float
    max_deliver: int
    max_ack_pending: int
    """The limit to request. A lower limit set by the server is accepted, but not below `least_ack_pending`."""
    start_sequence: int | None = None
    stream_created: str | None = None
    """Where to start if the durable must be created again, and the incarnation of the stream for which that holds."""
    last_sequence: int = 0
    last_time: int = 0
    """The last known message of that incarnation, 0 for none, and its time in nanoseconds since 1970."""
    passed_sequence: int = 0
    passed_time: int = 0
    """The last known message before `start_sequence`, 0 for none, and its time.

    If other processes received what the stream stored after a rollback, up to the last known message, only this one
    shows the rollback. It may be the last known message itself.
    """
    found_by_message: bool = False
    """True if a message showed that the stream was replaced after `stream_created`.

    Then the stream is the same as before if it has the last message.
    """
    standby: bool = False
    """True if only one of the processes that open it gets messages, the one with the lead: see `Link.take_the_lead`."""
    pin: str | None = None
    """With `standby`, the pin of this process if it has the lead."""
    others_seen: bool = False
    """True if the route had the durable open before and missed deliveries, which another process may have received."""
    deliver: str | int = "all"
    """Where a new durable starts if nothing is known of its stream: `all`, `new`, a sequence, or an RFC 3339 time."""
    least_ack_pending: int = 0
    """The maximum number of messages that the route has in hand (`max_in_flight`)."""
    token: bytes = b""
    """The start of the subjects of a partition, `b"3."`: the filters have it, and deliveries lose it."""
    owes_acks: bool = False
    """True if the route sends acks of earlier deliveries once this is open: the known messages are looked up then.

    If the stream was rolled back, and has grown beyond these messages since, its state alone does not show it.
    """
    metadata: Metadata = field(default=dict, compare=False)
    """Returns what identifies the route, for the metadata of a durable that is created."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The filters without the token."""
        token = self.token.decode()
        return tuple(one.removeprefix(token) for one in self.filters)


def beyond_end(spec: ConsumerSpec, last_sequence: int) -> SourceError | None:
    """Return the error if a new durable would start behind the next message of the stream; None if it would not.

    The server would skip the messages between them, which are not stored yet.
    """
    if not isinstance(spec.deliver, int) or spec.stream_created is not None or spec.deliver <= last_sequence + 1:
        return None
    return SourceError(
        f"the durable {spec.durable!r} would start at sequence {spec.deliver} (deliver), and the last one of stream "
        f"{spec.stream!r} is {last_sequence}: messages between them would be skipped; correct `deliver`",
        reason=reasons.CONSUMER_REFUSED,
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """The position of a durable when it was opened.

    `deliveries` is the number of its deliveries so far. `in_use` is True if another process seems to receive from it
    too, None if that can't be determined. Messages up to the sequence `passed` will not be delivered any more. `floor`
    is the ack floor, and `delivered` the sequence of the last message that was delivered for the first time.
    """

    deliveries: int
    in_use: bool | None
    passed: int = 0
    floor: int = field(default=0, compare=False)
    delivered: int = field(default=0, compare=False)


class StoredAt(NamedTuple):
    """A message of a stream: its sequence, and the time when it was stored, in nanoseconds since 1970."""

    sequence: int
    time: int


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """The current state of a durable. `paused` describes until when it is paused; None if it is not.

    `unacked` is the number of messages delivered but not acked; `max_ack_pending` of them are allowed (0 or less: any
    number). `delivered` is the sequence of the last message that was delivered for the first time; `undelivered` is the
    number of messages of the stream that have not been delivered yet. `deliveries` is the number of deliveries so far,
    redeliveries included. Messages up to the sequence `passed` are settled, or will never be delivered. `cut_off`
    describes that the durable's server has lost contact to its cluster; None if there is no sign of that. `lifted` are
    the limits that were removed from the durable just now, as they were. `oldest` is the first message that is not
    acked or not delivered, if it was looked up and found. `time` is the server's time of this state in nanoseconds
    since 1970; 0 if unknown. `ack_wait` in seconds holds for all unacked messages; 0 if unknown. `redelivered` is the
    number of messages that were delivered more than once and are not acked, whether or not they are delivered again.
    """

    paused: str | None
    unacked: int
    max_ack_pending: int
    delivered: int
    undelivered: int
    deliveries: int = 0
    passed: int = 0
    cut_off: str | None = None
    lifted: Sequence[str] = ()
    oldest: StoredAt | None = None
    time: int = field(default=0, compare=False)
    ack_wait: float = field(default=0.0, compare=False)
    redelivered: int = field(default=0, compare=False)

    @property
    def given_up(self) -> int:
        """The number of messages, at least, that reached the durable's limit of deliveries and are not acked."""
        return max(0, self.redelivered - self.unacked)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a durable and its stream that the server enforces; -1 for no limit.

    `retention` is the stream's: unless it is `limits`, the stream deletes messages that its consumers have acked.
    `subjects` are all subjects in the stream, empty if unknown; `stores` are the subjects that it accepts. `deliver` is
    where the durable started, as in `ConsumerSpec.deliver` or in the server's words; `""` if it started at a
    sequence. The server deletes the durable if it is unused for `expires_after` seconds; 0 for never.
    At most `max_waiting` pull requests may wait at a time; 0 for any number. `allow_message_ttl`: messages of the
    stream may expire one by one.
    """

    max_deliver: int
    max_ack_pending: int
    retention: str
    subjects: tuple[str, ...] = field(default=(), compare=False)
    deliver: str = "all"
    expires_after: float = 0.0
    max_waiting: int = field(default=0, compare=False)
    stores: StreamSubjects = field(default=StreamSubjects(), compare=False)
    allow_message_ttl: bool = field(default=False, compare=False)
