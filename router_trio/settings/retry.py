"""The sections for failed messages: when they are retried, and where they are stored after the last attempt."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import Field

from router_trio.protocol.schedules import token
from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm

_SIMPLE = re.compile(r"[A-Za-z0-9_-]+")

RetryDelay = Annotated[float, DurationForm(minimum=0.01)]


class RetryNames(NamedTuple):
    """The names of one route in the stream of retries.

    `schedules` is the subject below which its schedules are, `target` that of due messages, which `durable` reads, and
    `cancelled` that of what records a cancelled schedule. `other_durable` reads them if `durable` has another prefix.
    """

    schedules: str
    target: str
    durable: str
    cancelled: str
    other_durable: str

    @property
    def durables(self) -> tuple[str, str]:
        """The names that the durable may have."""
        return self.durable, self.other_durable


class RetryScheduleSettings(Section, init=False):
    """`schedule` in `[routes.retry]`: the stream in which messages wait for attempts that are far away."""

    stream: str = Field(
        min_length=1,
        description="Name of the stream that takes `prefix.>` and publishes schedules. It must have no limits.",
        examples=["RETRY"],
    )
    prefix: str = Field(
        min_length=1,
        description="Subject below which the router stores schedules and due messages.",
        examples=["retry"],
    )
    after: RetryDelay = Field(
        "30s",
        validate_default=True,
        description="Attempts that are further away wait in that stream, others in the consumer of the source.",
    )

    def names(self, route: str) -> RetryNames:
        """Return the names of a route."""
        name = route if _SIMPLE.fullmatch(route) else token(route.encode("utf-8", "surrogatepass"))
        prefix, durable = self.prefix, f"retry-{name}"
        other = f"{durable}-{token(prefix.encode('utf-8', 'surrogatepass'))}"
        return RetryNames(f"{prefix}.s.{name}", f"{prefix}.d.{name}", durable, f"{prefix}.x.{name}", other)


class RetrySettings(Section, init=False):
    """`[routes.retry]`: when a failed message is retried. A core message is kept in memory until then."""

    initial: RetryDelay = Field(
        "1s",
        validate_default=True,
        description="Maximum delay before the second attempt. Each delay is drawn between zero and its maximum.",
    )
    factor: float = Field(
        2.0, ge=1, le=100, allow_inf_nan=False, description="Factor by which the maximum delay grows with each attempt."
    )
    max: RetryDelay = Field("1m", validate_default=True, description="Upper bound of the maximum delay.")
    attempts: int = Field(
        0, ge=0, description="Number of attempts after which a message is given up, the first one included. 0: never."
    )
    never: list[str] = Field(
        default=[],
        validation_alias="not",
        serialization_alias="not",
        description="Reasons of failures that are not retried, as in router_messages_failed_total. "
        "handler_error:ValueError stands for errors of that class raised by a handler.",
        examples=[["handler_error:ValueError", "mapping", "too_large"]],
    )
    schedule: RetryScheduleSettings | None = Field(
        None,
        description="Stream in which messages from a stream wait for attempts that are far away, as message schedules. "
        "Needs nats-server 2.12. Absent: they wait in the consumer of the source.",
    )


class DeadLetterSettings(Section, init=False):
    """`[routes.dead_letter]`: where a message that is given up is stored."""

    connection: str = Field("", description="Name of the connection; by default that of the source.")
    subject: str = Field(
        description="Subject, or a mapping of the source's wildcards with the syntax of nats-server.",
        examples=["dead.{{wildcard(1)}}"],
    )
    jetstream: bool = Field(True, description="Publish to JetStream and wait for the PubAck; false: core publish.")
    stream: str | None = Field(
        None,
        min_length=1,
        description="Name of the stream that stores them, where the server maps the subject to another one.",
        examples=["DEAD"],
    )
