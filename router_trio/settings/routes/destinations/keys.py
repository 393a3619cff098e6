"""The keys of `[[routes.to]]`. The kinds of destination, beside this file, check them against each other."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field, field_validator

from router_trio.settings.routes.flow import BreakerSettings, Expression
from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm

# Servers count it in seconds, without fractions.
TimeToLive = Annotated[float, DurationForm(minimum=1, or_zero=True)]

MAX_WEIGHT = 1_000
"""Maximum weight of one destination: a round of a route is as long as the sum of its weights."""


class HeaderSettings(Section, init=False):
    """`[routes.to.headers]`: the headers of the copies."""

    set: dict[str, Expression] = Field(
        default={},
        description="Headers to set, each with an expression for its value. They replace headers of the same name, "
        "in any case.",
        examples=[{"X-Region": "body.region"}],
    )
    remove: list[str] = Field(
        default=[],
        description="Headers of the message to leave out; their case does not matter.",
        examples=[["X-Internal"]],
    )
    keep: list[str] = Field(
        default=[],
        description="Control headers of the message to carry along, which steer the stream that stores it. By "
        "default none.",
        examples=[["Nats-TTL"]],
    )


@cache
def _no_headers() -> HeaderSettings:
    return HeaderSettings()


class DestinationKeys(Section, init=False):
    """All keys that a `[[routes.to]]` may have, of every kind."""

    connection: str = Field("", description="Name of the connection; may be left out when there is only one.")
    subject: str = Field(
        "",
        description="Subject, or a mapping of the source's wildcards with the syntax of nats-server.",
        examples=["eu.{{wildcard(1)}}.{{wildcard(2)}}"],
    )
    bucket: str | None = Field(
        None, min_length=1, description="Name of an existing KV bucket to write to, in place of a subject."
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Key in the bucket, or a mapping as for `subject`. By default the same key as in the bucket of the "
        "source.",
        examples=["eu.{{wildcard(1)}}"],
    )
    last_writer: bool = Field(
        False,
        description="The bucket has other writers, such as a route in the other direction: of two values of a key, the "
        "one that was written last stays, and what came from the bucket is not sent back.",
    )
    jetstream: bool | None = Field(
        None,
        description="Publish to JetStream and wait for the PubAck; false: core publish, which counts as delivered "
        "when the server has read it. By default true if the route reads a stream, else false.",
        examples=[True],
    )
    stream: str | None = Field(
        None,
        min_length=1,
        description="Name of the stream that stores the messages, if the server maps the subject to another one: its "
        "PubAcks then count although its subjects do not match. Absent: any stream whose subjects match.",
        examples=["COPIES"],
    )
    reply: bool = Field(
        False,
        description="Carry the reply subject of a message to another connection as well. On its own connection a core "
        "message always keeps it.",
    )
    when: Expression | None = Field(
        None,
        description="Expression for the messages that this destination takes, with the strategies all and "
        "first_match; absent: all.",
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
        description="Share of the route's messages that are also copied here, apart from the strategy. A failed copy "
        "does not fail its message.",
        examples=[0.1],
    )
    payload: Expression | None = Field(
        None,
        description="Expression for the payload: a string or bytes are sent as they are, anything else as JSON; "
        "absent: the original payload.",
        examples=['{"id": body.id}'],
    )
    ttl: TimeToLive = Field(
        "0s",
        validate_default=True,
        description="Time after which the stream deletes the message (Nats-TTL), in whole seconds; 0s: as the stream "
        "says.",
    )
    delay: Expression | None = Field(
        None,
        description="How much later the stream publishes the copy: a duration, or an expression for a duration or a "
        "timestamp. Until then it is stored as a schedule, which needs nats-server 2.12. Absent: at once.",
        examples=["5m", "duration(body.wait)", "timestamp(body.not_before)"],
    )
    schedule_prefix: str | None = Field(
        None,
        min_length=1,
        description="With `delay`: the subject below which schedules are stored, in the stream that also takes "
        "`subject`.",
        examples=["later"],
    )
    headers: HeaderSettings = Field({}, validate_default=True, description="Headers of the copies.")
    breaker: BreakerSettings | None = Field(
        None, description="Stop sending to this destination for a while after repeated failures; absent: never."
    )

    @field_validator("headers")
    @classmethod
    def _share_if_empty(cls, headers: HeaderSettings) -> HeaderSettings:
        """Return these headers; one object for all destinations without any, which are most of thousands."""
        return headers if headers.set or headers.remove or headers.keep else _no_headers()
