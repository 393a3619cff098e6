"""The sections for failed messages: when they are retried, and where they are stored after the last attempt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm

RetryDelay = Annotated[float, DurationForm(minimum=0.01)]


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
