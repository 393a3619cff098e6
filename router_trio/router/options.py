"""Types of the keyword arguments of `Router.route`, and of the functions that can be handlers.

The keys are those of the sections of a configuration, so that type checkers find what a file would be refused for.
tests/unit/router/test_options.py holds them equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Required, TypeAlias, TypedDict
from uuid import UUID

from router_trio.message import Message
from router_trio.settings.routes.sources.keys import MessageIdOf

if TYPE_CHECKING:
    from msgspec import Struct
    from pydantic import BaseModel

Duration: TypeAlias = str | float
"""Text with a unit, such as `"30s"`, or seconds."""

Size: TypeAlias = str | int
"""Text with a unit, such as `"64MiB"`, or bytes."""

Texts: TypeAlias = list[str] | tuple[str, ...]


class SourceOptions(TypedDict, total=False):
    """The keys of `[routes.from]` besides `subject` and `connection`."""

    queue: str | None
    stream: str | None
    bucket: str | None
    durable: str | None
    standby: bool
    partitions: int | None
    partition_by: list[int] | tuple[int, ...] | None
    filter: str | Texts | None
    deliver: str | int | datetime
    max_in_flight: int
    max_in_flight_bytes: Size
    ack_wait: Duration
    max_deliver: int
    nak_delay: Duration
    message_id: MessageIdOf | None


class HeaderOptions(TypedDict, total=False):
    """The keys of `[routes.to.headers]`."""

    set: dict[str, str]
    remove: Texts
    keep: Texts


class BreakerOptions(TypedDict, total=False):
    """The keys of `[routes.to.breaker]`."""

    failures: int
    pause: Duration


class BucketOptions(TypedDict, total=False):
    """The keys of a `[[routes.to]]` that is a KV bucket."""

    connection: str
    bucket: Required[str]
    key: str | None
    last_writer: bool
    when: str | None
    weight: int
    mirror: float | None
    payload: str | None
    ttl: Duration
    headers: HeaderOptions
    breaker: BreakerOptions | None


class DestinationOptions(TypedDict, total=False):
    """The keys of a `[[routes.to]]` that is a subject."""

    connection: str
    subject: Required[str]
    jetstream: bool | None
    stream: str | None
    reply: bool
    when: str | None
    weight: int
    mirror: float | None
    payload: str | None
    ttl: Duration
    delay: str | None
    schedule_prefix: str | None
    headers: HeaderOptions
    breaker: BreakerOptions | None


_WithKeyword = TypedDict("_WithKeyword", {"not": Texts}, total=False)


class RetryScheduleOptions(TypedDict, total=False):
    """The keys of `schedule` in `[routes.retry]`."""

    stream: Required[str]
    prefix: Required[str]
    after: Duration


class RetryOptions(_WithKeyword, total=False):
    """The keys of `[routes.retry]`. One more is `not`, a keyword of Python."""

    initial: Duration
    factor: float
    max: Duration
    attempts: int
    schedule: RetryScheduleOptions | None


class DeadLetterOptions(TypedDict, total=False):
    """The keys of `[routes.dead_letter]`."""

    connection: str
    subject: Required[str]
    jetstream: bool
    stream: str | None


class LimitOptions(TypedDict, total=False):
    """The keys of `[routes.limit]`."""

    rate: Required[str]
    burst: int | None
    per: str | None


# --- handlers ---


class Dataclass(Protocol):
    """A dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Fields: TypeAlias = "BaseModel | Struct | Dataclass | Mapping[Any, Any]"
"""Values with fields, which are JSON objects."""

Value: TypeAlias = (
    "Fields | list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any] | float | Enum | Decimal | date | UUID"
)
"""Values that become JSON. Neither text nor bytes: these do not say whether they are JSON already."""

Answer: TypeAlias = "Message | Value | Iterable[Message | Fields] | Iterator[Any] | None"
"""Everything that a handler may return."""

Function: TypeAlias = "Callable[[Any], Answer | Awaitable[Answer]] | Callable[[Any, Any], Answer | Awaitable[Answer]]"
"""A handler. It takes a message or a body, and may take what the lifespan yielded. It may be async."""
