"""The keys of `[routes.from]`. The kinds of source, beside this file, check them against each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm, PositiveSize

MessageIdOf = Literal["own", "sender"]

AckWait = Annotated[float, DurationForm(minimum=0.1)]
NakDelay = Annotated[float, DurationForm(minimum=0.01)]


def _checked_filter(value: object) -> object:
    """Return a valid filter. Raises one ValueError for other types, where pydantic would report one for each form."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError("must be text in quotes, or a list of texts")
    if not value:
        raise ValueError("must have at least one entry; without `filter` the whole stream is read")
    return list(value)


def _checked_start(value: object) -> object:
    """Return `all`, `new`, a sequence, or a time as servers write it: in UTC, without trailing zeros of a fraction."""
    if value in ("all", "new"):
        return value
    if type(value) is int and 1 <= value <= LAST_SEQUENCE:
        return value
    try:
        # TOML has a type for times.
        at = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).upper())
        if at.tzinfo is None or not isinstance(value, str | datetime):
            raise ValueError
        at = at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(_NO_START) from None
    fraction = f".{at.microsecond:06}".rstrip("0").rstrip(".")
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}Z"


_NO_START = "must be 'all', 'new', a sequence of the stream, or a time with its zone, such as '2026-01-01T00:00:00Z'"

LAST_SEQUENCE = 2**63 - 1
"""The largest sequence that TOML can write."""

MAX_PARTITIONS = 1_024
"""Maximum number of partitions of a stream: each has a durable consumer."""

Wildcard = Annotated[int, Field(ge=1)]

Deliver = Annotated[str | int, BeforeValidator(_checked_start)]
Filter = Annotated[str | list[str] | None, BeforeValidator(_checked_filter)]


class SourceKeys(Section, init=False):
    """All keys that a `[routes.from]` may have, of every kind."""

    connection: str = Field("", description="Name of the connection; may be left out when there is only one.")
    subject: str | None = Field(
        None, description="Subject to subscribe to; wildcards * and > allowed.", examples=["orders.*.*"]
    )
    queue: str | None = Field(None, min_length=1, description="Queue group that shares the messages of the subject.")
    stream: str | None = Field(None, min_length=1, description="Name of an existing JetStream stream.")
    bucket: str | None = Field(
        None, min_length=1, description="Name of an existing KV bucket, whose keys are the subjects of the messages."
    )
    durable: str | None = Field(
        None, min_length=1, description="Name of the durable consumer of the stream or bucket; created if absent."
    )
    standby: bool = Field(
        False,
        description="Let only one of all processes with this durable route at a time, so that order is kept; another "
        "one takes over when it ends. Needs nats-server 2.11.",
    )
    filter: Filter = Field(
        None,
        description="Route only messages of the stream whose subject matches, or of the bucket whose key does: one "
        "pattern, or a list of several that don't overlap.",
        examples=["orders.*.*", ["orders.*.created", "returns.>"]],
    )
    partitions: int | None = Field(
        None,
        ge=1,
        le=MAX_PARTITIONS,
        description="Number of partitions of the stream, which all processes with this durable share by themselves: "
        "each is routed by one process at a time, so that order is kept. Needs nats-server 2.12, or 2.11 with "
        "`partition_by`.",
        examples=[16],
    )
    partition_by: list[Wildcard] | None = Field(
        None,
        min_length=1,
        description="Numbers of the wildcards of `filter` that make the key of a message: messages with the same "
        "tokens there are in the same partition, and keep their order. By default the entire subject.",
        examples=[[1]],
    )
    deliver: Deliver = Field(
        "all",
        description="Where a newly created durable starts: at the first message (all), with new messages only (new), "
        "at a sequence of the stream, or at a given time. An existing durable continues from its position.",
        examples=["new", 41201, "2026-01-01T00:00:00Z"],
    )
    max_in_flight: int = Field(
        4096,
        ge=1,
        description="Maximum number of messages of the stream that are processed at a time. As many again may wait "
        "behind refused messages, or behind others with their key.",
    )
    max_in_flight_bytes: PositiveSize = Field(
        "16MiB",
        validate_default=True,
        description="Maximum size of these messages. A larger message is processed alone.",
    )
    ack_wait: AckWait = Field(
        "30s",
        validate_default=True,
        description="Time after which the stream redelivers an unacked message; 100ms or more.",
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
        description="First part of the Nats-Msg-Id of a copy: the message's position in its source (own), or the id "
        "that the sender gave it, if any (sender). By default own for streams, sender for subjects.",
        examples=["own"],
    )

    @property
    def filters(self) -> tuple[str, ...]:
        """The patterns of `filter`, none for the entire stream."""
        if self.filter is None:
            return ()
        return (self.filter,) if isinstance(self.filter, str) else tuple(self.filter)
