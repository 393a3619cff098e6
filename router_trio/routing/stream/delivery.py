"""Follow a delivery of a message from a stream, which is described by its reply subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from router_trio.errors.reasons import OF_THE_MESSAGE, OUT_OF_TURN, SHUTDOWN
from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.protocol import ack_reply, copies, framing
from router_trio.protocol.copies import Copied
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.delivery import Delivery
from router_trio.routing.policy.failed_messages import Numbering
from router_trio.routing.policy.retry import Failure
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.states import RouteState

Columns = tuple[Sequence[int], Sequence[int], Sequence[bytes]]
"""The sequences, the consumer's numbers, and the times of several deliveries. See `StreamDelivery`."""

Doubt = Callable[[Delivery, str, Operation], bool]
"""Returns True if a copy whose id its stream has must be compared before it counts as stored: see `NewestCheck`."""


class Keeper(Protocol):
    """The keeper of a delivery, with the methods that the delivery calls: see `routing.keeper`."""

    state: RouteState
    numbering: Numbering
    copied: Copied | None
    """The stream that the server copies the messages from, by whose originals they are identified; None for none."""
    doubt: Doubt | None
    """None if a copy is stored when its stream has its id."""
    stored: list[StreamDelivery]
    """Messages whose only destination has stored them, by its PubAcks, and that are not counted yet."""

    def destination_refused(self, delivery: StreamDelivery) -> None:
        """Note that a destination refused it, or that it was recalled from one; others may not have answered yet."""

    def finished(self, delivery: StreamDelivery) -> None:
        """Settle or redeliver a message that all destinations have settled."""

    def passes_by(self, delivery: StreamDelivery) -> bool:
        """Return True if an earlier message of its subject was refused and is not settled."""
        ...

    def first_stored(self) -> None:
        """Note that the first message is about to be added to `stored`."""

    def order_key(self, delivery: StreamDelivery) -> bytes:
        """Return the key by which messages are ordered: the subject, or the value of the route's key. Never raises."""
        ...


class StreamDelivery(Delivery):
    """A message from a stream. `ack_subject`, that of the newest delivery, acks it.

    `number` is the consumer's number of the delivery, `cursor` belongs to the incarnation of the stream that it
    came from, and `time` is when the stream stored the message, in nanoseconds since 1970, as undecoded digits.
    `message_id` is the same for every delivery of the message, and another one if the stream was recreated. Of a
    message in a copy of another stream it is that of the original, and so is the place that `origin` and
    `in_stream` return. `refused`: a destination refused it, not because of its content. `recalled`: it was taken
    back from a destination, see `Outbox.recall`, or the connection of a destination ended before that confirmed it;
    either alone is no failure. `key` is the value of its route's key, once that is known.
    """

    __slots__ = (
        "ack_subject",
        "choices",
        "cursor",
        "keeper",
        "key",
        "message_id",
        "number",
        "recalled",
        "refused",
        "sequence",
        "time",
    )

    from_stream = True
    has_waited: ClassVar[bool] = False
    """True if it has waited for this attempt in the stream of retries, while later messages were routed."""
    # The reply subject of a delivery is for acks, not for the receivers of copies. A constant, since it is read faster.
    reply = b""  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(
        self,
        keeper: Keeper,
        cursor: StreamCursor,
        raw: framing.RawMessage,
        received_at: float,
        sequence: int,
        number: int,
        time: bytes,
        message_id: bytes,
    ) -> None:
        # Without the base constructor, whose call would be noticeable for each message.
        self.route = keeper.state
        self.raw = raw
        self.received_at = received_at
        self.remaining = 1
        self.failure = None
        self.outcome = "routed"
        self.trace = None
        self.cursor: StreamCursor = cursor
        self.recalled: bool = False
        self.refused = False
        self.ack_subject: bytes = raw[1]
        self.choices: dict[int, Sequence[int]] | None = None
        self.key = None
        self.keeper: Keeper = keeper
        self.sequence: int = sequence
        self.number: int = number
        self.time: bytes = time
        self.message_id = message_id

    def settle(self, operation: Operation, count: int, fate: Fate, now: float) -> None:
        """Record a fate. A message that was just stored is settled with all others of the same read.

        Fast path of `Delivery.settle`; held equal by
        test_both_ways_of_streams.py::test_messages_stored_together_are_acked_as_each_would_be, worth 230 instructions a
        message (tests/performance/test_fast_paths.py::test_messages_that_are_stored_together).
        """
        if fate.name == "acked" and self.remaining == 1 and self.failure is None and not fate.duplicate:
            self.remaining = 0
            if self.trace is not None:
                self.trace.sent(self.route.destinations[0], fate)
                self.route.elapsed.keep(self.trace.end(now - self.received_at))
                self.trace.settled("routed", None)  # counted together with the others
            keeper = self.keeper
            if not keeper.stored:
                keeper.first_stored()
            keeper.stored.append(self)
        else:
            super().settle(operation, count, fate, now)

    def proved(self, template: str, operation: Operation, fate: Fate) -> Fate:
        doubt = self.keeper.doubt
        if doubt is None or not doubt(self, template, operation):
            return fate
        self.mark_tried()
        return Fate("failed", OUT_OF_TURN)

    @property
    def order_key(self) -> bytes:
        """The key whose messages are kept in order."""
        return self.keeper.order_key(self)

    @property
    def deliveries(self) -> int:
        """The number of deliveries of the message."""
        return _number(ack_reply.tokens(self.ack_subject)[ack_reply.DELIVERIES])

    def origin(self) -> dict[str, Any]:
        tokens = ack_reply.tokens(self.ack_subject)
        return {
            **self._place(tokens),
            "deliveries": _number(tokens[ack_reply.DELIVERIES]),
            "timestamp": _number(tokens[ack_reply.TIME]) / 1e9,
        }

    def in_stream(self) -> dict[str, Any]:
        tokens = ack_reply.tokens(self.ack_subject)
        return {
            **self._place(tokens),
            "deliveries": _number(tokens[ack_reply.DELIVERIES]),
            "time_ns": _number(tokens[ack_reply.TIME]),
        }

    def _place(self, tokens: Sequence[bytes]) -> dict[str, Any]:
        """Return the stream and the sequence by which the message is identified."""
        original = self._original
        if original is None:
            return {"stream": framing.text(tokens[ack_reply.STREAM]), "sequence": self.sequence}
        return {"stream": framing.text(original.stream), "sequence": original.sequence}

    @property
    def _original(self) -> copies.Original | None:
        """Return the message that this one is the server's copy of; None unless it is in a copy of another stream."""
        copied = self.keeper.copied
        return None if copied is None else copies.original_in(self.raw, copied)

    def fail(self, reason: str, failure: Failure | None = None) -> None:
        if reason in (OUT_OF_TURN, SHUTDOWN):
            self.recalled = True
        else:
            super().fail(reason, failure)
        if reason not in OF_THE_MESSAGE and not self.refused:
            self.refused = True
            self.keeper.destination_refused(self)

    @property
    def place_in_stream(self) -> int:
        original = self._original
        return self.sequence if original is None else original.sequence

    @property
    def stored_at(self) -> int:
        """When its stream stored it, in nanoseconds since 1970; 0 if the reply subject is not valid."""
        return _number(self.time)

    @property
    def stream_created(self) -> str:
        """When its stream was created, as far as that is known."""
        return self.cursor.stream_created

    @property
    def attempt(self) -> int:
        return self.cursor.failures.attempts(self.sequence) + 1

    @property
    def was_tried(self) -> bool:
        return self.cursor.failures.was_tried(self.sequence)

    def mark_tried(self) -> None:
        self.cursor.failures.mark_tried(self.sequence)

    @property
    def out_of_turn(self) -> bool:
        return self.keeper.passes_by(self)

    def copied(self, copy: int) -> None:
        self.cursor.failures.copied(self.sequence, copy, self.keeper.numbering)

    def has_copied(self, copy: int) -> bool:
        return copy in self.cursor.failures.copies(self.sequence, self.keeper.numbering)

    @property
    def has_copies(self) -> bool:
        return bool(self.cursor.failures.copies(self.sequence, self.keeper.numbering))

    def choice(self, number: int) -> Sequence[int] | None:
        if self.choices is not None and number in self.choices:
            return self.choices[number]
        return self.cursor.failures.choice(self.sequence, number, self.keeper.numbering)

    def keep_choice(self, number: int, chosen: Sequence[int]) -> None:
        """Remember the chosen destinations. `keep_for_redelivery` keeps them beyond this delivery."""
        if self.choices is None:
            self.choices = {}
        self.choices[number] = chosen

    def keep_for_redelivery(self) -> None:
        """Remember the chosen destinations, since the message leaves the hand and may be redelivered."""
        if self.choices is not None:
            self.cursor.failures.keep_choices(self.sequence, self.choices, self.keeper.numbering)

    def start_again(self) -> None:
        super().start_again()
        self.choices = None  # until it is sent again; kept by `keep_for_redelivery`
        self.recalled = False
        self.refused = False

    def finished(self) -> None:
        self.keeper.finished(self)


def delivery_of(keeper: Keeper, cursor: StreamCursor, raw: framing.RawMessage, received_at: float) -> StreamDelivery:
    """Return a delivery made from its reply subject. Raises `ValueError` or `IndexError` if that is not valid."""
    tokens = ack_reply.tokens(raw[1])
    sequence, number = int(tokens[ack_reply.SEQUENCE]), int(tokens[ack_reply.NUMBER])
    if not (0 < sequence <= LAST_SEQUENCE and 0 < number <= LAST_SEQUENCE):
        raise ValueError("a sequence that no stream has")
    time = tokens[ack_reply.TIME]
    message_id = b"%b:%b:%b" % (tokens[ack_reply.STREAM], tokens[ack_reply.SEQUENCE], time)
    return StreamDelivery(keeper, cursor, raw, received_at, sequence, number, time, message_id)


def columns_of(deliveries: Sequence[StreamDelivery]) -> Columns:
    """Return the columns of deliveries."""
    return (
        [delivery.sequence for delivery in deliveries],
        [delivery.number for delivery in deliveries],
        [delivery.time for delivery in deliveries],
    )


def _number(token: bytes) -> int:
    """Return a number, 0 if the token is none: any client may have written the reply subject."""
    return int(token[:20]) if token.isdigit() else 0
