"""The sections of a route: where its messages come from, which of them it takes, and what goes where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from random import randrange
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.sections import Section
from router_trio.settings.units import (
    MOST_MESSAGES,
    DurationForm,
    PositiveSize,
    Rate,
    RateForm,
    format_duration,
    format_rate,
)
from router_trio.subjects.mapping import Mapping

MessageIdOf = Literal["own", "sender"]
Strategy = Literal["all", "first_match", "weighted", "sticky", "fallback"]

AckWait = Annotated[float, DurationForm(minimum=0.1)]
NakDelay = Annotated[float, DurationForm(minimum=0.01)]
# A server counts it in whole seconds.
TimeToLive = Annotated[float, DurationForm(minimum=1, or_zero=True)]
Expression = Annotated[str, Field(min_length=1)]
LimitRate = Annotated[Rate, RateForm()]
BreakerPause = Annotated[float, DurationForm(minimum=0.1)]


def _checked_filter(value: object) -> object:
    """Refuse what is neither text nor a list of it here: pydantic would complain of each form by itself."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError("must be text in quotes, or a list of texts")
    if not value:
        raise ValueError("must have at least one entry; without `filter` the whole stream is read")
    return list(value)


def _checked_start(value: object) -> object:
    """Return `all`, `new` or a time as a server writes it: in UTC, and without zeros at the end of a fraction."""
    if value in ("all", "new"):
        return value
    try:
        # TOML has times of its own.
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).upper())
        if at.tzinfo is None or not isinstance(value, str | datetime):
            raise ValueError
        at = at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(_NO_START) from None
    fraction = f".{at.microsecond:06}".rstrip("0").rstrip(".")
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}Z"


_NO_START = "must be 'all', 'new' or a time with its zone, such as '2026-01-01T00:00:00Z'"

Deliver = Annotated[str, BeforeValidator(_checked_start)]
Filter = Annotated[str | list[str] | None, BeforeValidator(_checked_filter)]

MAX_WEIGHT = 1_000
"""Of one destination: a round of a route is as long as the sum of its weights."""

MOST_IN_FLIGHT = 4096
"""Messages of a stream that a route processes at a time where nobody has said: as many JetStream publishes as a
connection has in flight, see `sender.MAX_UNACKED`."""

MAX_CONCURRENCY = 1_000
"""Calls of the handler of one route at a time: each is a task, or a thread."""


class SourceSettings(Section, init=False):
    """`[routes.from]`: either a subject (core NATS) or a stream with a durable consumer (JetStream)."""

    connection: str = Field("", description="Name of the connection; may be left out when there is only one.")
    subject: str | None = Field(
        None, description="Subject to subscribe to; wildcards * and > allowed.", examples=["orders.*.*"]
    )
    queue: str | None = Field(None, min_length=1, description="Queue group that shares the messages of the subject.")
    stream: str | None = Field(None, min_length=1, description="Name of an existing JetStream stream.")
    durable: str | None = Field(
        None, min_length=1, description="Name of the durable consumer of the stream; created if absent."
    )
    standby: bool = Field(
        False,
        description="Of all processes with this durable one routes, and another takes over when it is gone: order is "
        "kept. Needs nats-server 2.11.",
    )
    filter: Filter = Field(
        None,
        description="Only messages of the stream whose subject matches: one pattern, or a list of several that don't "
        "overlap.",
        examples=["orders.*.*", ["orders.*.created", "returns.>"]],
    )
    deliver: Deliver = Field(
        "all",
        description="Where a durable begins that is made: with all of the stream, with what is new, or with what was "
        "stored at a time or later. One that is there goes on where it is.",
        examples=["new", "2026-01-01T00:00:00Z"],
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        description="Most messages of the stream that are processed at a time; as many may wait behind refused ones, "
        "or behind others of their key. By default from 1,024 to 4,096: as many as help, which the round trip decides.",
    )
    max_in_flight_bytes: PositiveSize = Field(
        "16MiB", validate_default=True, description="The same in bytes; a larger message is processed alone."
    )
    ack_wait: AckWait = Field(
        "30s",
        validate_default=True,
        description="Time after which the stream redelivers an unacked message; 100ms or more.",
    )
    ack: Literal["each", "all"] = Field(
        "each",
        description="How messages are acked: each by itself, or all up to the last of those that are settled with one "
        "ack. `all` is for one process, and makes a durable with the ack policy all.",
    )
    max_deliver: int = Field(
        -1, ge=-1, description="Ignored, until 1.0 refuses it: write `attempts` in `[routes.retry]`."
    )

    nak_delay: NakDelay = Field(
        "1s",
        validate_default=True,
        description="Ignored, until 1.0 refuses it: write `initial` in `[routes.retry]`.",
    )
    message_id: MessageIdOf | None = Field(
        None,
        description="What the Nats-Msg-Id of a copy begins with: the message's place in its source (own), or the id "
        "that the sender gave it, if any (sender). By default own for streams, sender for subjects.",
        examples=["own"],
    )

    @property
    def own_ids(self) -> bool:
        """True if copies get ids of the router's own, whatever the sender says."""
        return self.stream is not None if self.message_id is None else self.message_id == "own"

    def mapping(self, destination: str, random: Callable[[int], int] = randrange) -> Mapping:
        """The mapping from this source to a destination's subject. Raises MappingError or SubjectError.

        `random(n)` gives an integer of at least 0 and less than `n`.
        """
        if self.subject or self.filters:
            return Mapping.compile_each(self.patterns, destination, random=random)
        return Mapping.compile_for_any(destination, random=random)

    @property
    def most_in_flight(self) -> int:
        """The most messages of the stream that are ever processed at a time."""
        return MOST_IN_FLIGHT if self.max_in_flight is None else self.max_in_flight

    @property
    def filters(self) -> tuple[str, ...]:
        """The patterns of `filter`, none for the whole stream."""
        if self.filter is None:
            return ()
        return (self.filter,) if isinstance(self.filter, str) else tuple(self.filter)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The subjects that can arrive: the subscription's, those of the filter, or `>` for a whole stream."""
        return (self.subject,) if self.subject else self.filters or (">",)

    @property
    def pattern(self) -> str:
        """The `patterns`, in one text."""
        return ", ".join(self.patterns)


class HeaderSettings(Section, init=False):
    """`[routes.to.headers]`: which headers are carried along."""

    set: dict[str, Expression] = Field(
        default={},
        description="Headers that the destination gets, each with an expression for its value. They replace those of "
        "that name, in any case, that the message has.",
        examples=[{"X-Region": "body.region"}],
    )
    remove: list[str] = Field(
        default=[],
        description="Headers of the message that don't go along, in any case.",
        examples=[["X-Internal"]],
    )
    keep: list[str] = Field(
        default=[],
        description="Control headers of the message that are carried along: those that steer the stream that stores "
        "it. By default none is.",
        examples=[["Nats-TTL"]],
    )


class LimitSettings(Section, init=False):
    """`[routes.limit]`: how many messages a route takes to its destinations, at most burst + rate x t in any time t.

    What is more waits: in its stream, or of a subject in the route's intake queue.
    """

    rate: LimitRate = Field(description="Messages in a second, a minute or an hour.", examples=["500/s", "30000/m"])
    burst: int | None = Field(
        None,
        ge=1,
        le=MOST_MESSAGES,
        description="Messages that may go at once; by default what goes in a second, at least 1.",
    )
    per: Expression | None = Field(
        None,
        description="Expression: each value has a limit of its own. Without it there is one limit for all messages.",
        examples=['headers["tenant"]'],
    )

    @property
    def most_at_once(self) -> int:
        """`burst`, or what it is by default."""
        return max(1, self.rate.messages // self.rate.seconds) if self.burst is None else self.burst

    @property
    def sentence(self) -> str:
        """The limit in words."""
        each = "" if self.per is None else f", for each {self.per}"
        return f"{format_rate(self.rate)}, at most {self.most_at_once} at once{each}"


class BreakerSettings(Section, init=False):
    """`[routes.to.breaker]`: when the route leaves a destination alone that fails message after message.

    Meanwhile its input waits, or with the strategy fallback the next destination is used.
    """

    failures: int = Field(5, ge=1, description="Failures in a row of this destination that open the breaker.")
    pause: BreakerPause = Field(
        "10s",
        validate_default=True,
        description="Time until one message tries whether the destination takes it; if so the breaker closes.",
    )

    @property
    def sentence(self) -> str:
        """The breaker in words."""
        failures = "a failure opens" if self.failures == 1 else f"{self.failures} failures in a row open"
        return f"{failures} it, then a message tries every {format_duration(self.pause)}"


class DestinationSettings(Section, init=False):
    """`[[routes.to]]`: where a route sends."""

    connection: str = Field("", description="Name of the connection; may be left out when there is only one.")
    subject: str = Field(
        description="Subject, or a mapping of the source's wildcards with the syntax of nats-server.",
        examples=["eu.{{wildcard(1)}}.{{wildcard(2)}}"],
    )
    jetstream: bool = Field(False, description="Publish to JetStream and wait for the PubAck; false: core publish.")
    fast_ingest: bool = Field(
        True,
        description="Use fast ingest (ADR-50), one answer for many messages, where the stream has `allow_batched`; "
        "false: a PubAck for each message.",
    )
    reply: bool = Field(
        False,
        description="Carry the reply subject of a message to another connection as well. On its own connection a core "
        "message always keeps it.",
    )
    when: Expression | None = Field(
        None,
        description="Expression for the messages that may go here, with the strategies all and first_match; absent: "
        "any.",
        examples=['body.priority == "high"'],
    )
    weight: int = Field(
        1,
        ge=1,
        le=MAX_WEIGHT,
        description="Share of the messages, in proportion to the other destinations, with the strategies weighted and "
        "sticky.",
    )
    mirror: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the route's messages of which a copy goes here, besides where the strategy sends them. "
        "Nothing fails if the copy does.",
        examples=[0.1],
    )
    payload: Expression | None = Field(
        None,
        description="Expression for the payload: a string or bytes go as they are, all else as JSON; absent: the "
        "payload that came.",
        examples=['{"id": body.id}'],
    )
    ttl: TimeToLive = Field(
        "0s",
        validate_default=True,
        description="Time after which the stream deletes the message (Nats-TTL), in whole seconds; 0s: as the stream "
        "says.",
    )
    headers: HeaderSettings = Field({}, validate_default=True, description="Which headers are carried along.")
    breaker: BreakerSettings | None = Field(
        None, description="When this destination is left alone because it fails; absent: never."
    )


class RouteSettings(Section, init=False):
    """`[[routes]]`: messages from one source to one or more destinations."""

    name: str = Field(min_length=1, description="Name of the route, unique; a label in metrics.")
    source: SourceSettings = Field(
        validation_alias="from", serialization_alias="from", description="Where the messages come from."
    )
    when: Expression | None = Field(
        None,
        description="Expression for the messages that this route takes; absent: all. The others are filtered.",
        examples=['headers["region"] == "eu" && body.total > 100'],
    )
    key: Expression | None = Field(
        None,
        description="Expression for what belongs together: messages with one value keep the order of their source, one "
        "at a time, and the strategy sticky sends them to one destination. By default the subject of the message.",
        examples=["body.customer.id"],
    )
    concurrency: int = Field(
        1,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Most calls of the handler at a time, never two for one `key`.",
        examples=[32],
    )
    thread: bool = Field(
        False,
        description="Call the handler, a plain def, in a thread, so that it may block: as many threads as "
        "`concurrency` says.",
    )
    strategy: Strategy = Field(
        "all",
        description="Which destinations get a message: all of them; the first whose `when` holds; one in turn, by "
        "weight; one by the value of `key`; or the first that is connected and takes it.",
    )
    hop_limit: int | None = Field(
        None,
        ge=1,
        le=1_000,
        description="Routes that a message may have passed, of those with a limit: its header Router-Hops counts "
        "them. One that has passed so many fails with the reason loop. Absent: nothing is counted.",
        examples=[5],
    )
    retry: RetrySettings | None = Field(
        None,
        description="When a message that failed is tried again. By default one of a stream without end, one of a "
        "subject never.",
    )
    dead_letter: DeadLetterSettings | None = Field(None, description="Where a message goes that is given up.")
    limit: LimitSettings | None = Field(None, description="How many messages may go; absent: as many as there are.")
    to: list[DestinationSettings] = Field(
        default=[],
        description="Where the messages go to, as `strategy` says. May be left out only with `respond`.",
    )
    respond: bool = Field(
        False,
        description="Send what the handler returns to the reply subject of the message as well, which then does not go "
        "along to the destinations; only for a subject.",
    )
    handler: str | None = Field(
        None,
        description="Function that is called with each message before it is sent, as package.module:function. It is "
        "imported from installed packages, then from the working directory.",
        examples=["orders.handlers:enrich"],
    )

    def goes_by_key(self, handled: bool) -> bool:
        """Return True if messages go key by key: of each key one at a time. `handled`: the route has a handler."""
        if handled:
            return self.key is not None or self.concurrency > 1
        if self.source.stream is not None:
            return self.key is not None
        # Nothing of a subject waits for anything, unless it is tried again, or its value has a limit.
        kept = self.retry is not None or self.dead_letter is not None
        return self.key is not None and (kept or (self.limit is not None and self.limit.per is not None))
