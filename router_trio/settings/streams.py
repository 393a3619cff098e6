"""`[[streams]]`: streams that a router creates if they do not exist."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router_trio.errors import MappingError, SubjectError
from router_trio.protocol.stream_config import StreamConfig
from router_trio.settings.routes.sources.keys import MAX_PARTITIONS, Wildcard
from router_trio.settings.sections import Section
from router_trio.settings.units import DurationForm, Size
from router_trio.subjects.partitions import EVERYTHING, Partitioning

# nats-server refuses smaller values.
MaxAge = Annotated[float, DurationForm(minimum=0.1, or_zero=True)]
DuplicateWindow = Annotated[float, DurationForm(minimum=0.1)]


class StreamSettings(Section, init=False):
    """`[[streams]]`: a JetStream stream, created if absent. An existing stream is compared and never changed."""

    connection: str = Field("", description="Name of the connection; may be left out when there is only one.")
    name: str = Field(min_length=1, description="Name of the stream.", examples=["DEAD"])
    subjects: list[str] = Field(
        [],
        min_length=1,
        description="Subjects that the stream takes; wildcards * and > allowed. Left out only for the copy of a stream "
        "that a route with `partitions` reads.",
        examples=[["dead.>"]],
    )
    partitions: int | None = Field(
        None,
        ge=1,
        le=MAX_PARTITIONS,
        description="Number of partitions: each message is stored with the number of its partition in front of its "
        "subject, for a route with as many `partitions`. Needs nats-server 2.12, or 2.10 with `partition_by`.",
        examples=[16],
    )
    partition_by: list[Wildcard] | None = Field(
        None,
        min_length=1,
        description="Numbers of the wildcards of the only subject whose tokens determine the partition of a message. "
        "By default the entire subject does.",
        examples=[[1]],
    )
    storage: Literal["file", "memory"] = Field("file", description="Where the server keeps the messages.")
    retention: Literal["limits", "interest", "workqueue"] = Field(
        "limits",
        description="When a message is deleted: at a limit; also when all consumers are done with it (interest); or "
        "when the only one is (workqueue).",
    )
    replicas: int = Field(1, ge=1, le=5, description="Number of servers in the cluster that keep each message.")
    max_age: MaxAge = Field(
        "0s", validate_default=True, description="Age at which a message is deleted, 100ms or more; 0s: never."
    )
    max_bytes: Size = Field("0B", validate_default=True, description="Maximum size of the stream; 0B: no limit.")
    max_messages: int = Field(0, ge=0, description="Maximum number of messages in the stream; 0: no limit.")
    discard: Literal["old", "new"] = Field(
        "old", description="At a limit: delete the oldest messages, or refuse new ones."
    )
    duplicate_window: DuplicateWindow | None = Field(
        None,
        description="Time in which a second message with the same Nats-Msg-Id is dropped, 100ms or more; absent: the "
        "server's default, 2m. Should be longer than the longest outage.",
        examples=["10m"],
    )
    allow_batched: bool = Field(
        False, description="Accept fast ingest (ADR-50) from other publishers; needs nats-server 2.14."
    )
    allow_message_ttl: bool = Field(
        False, description="Accept messages with a time to live of their own (Nats-TTL); needs nats-server 2.11."
    )
    allow_message_schedules: bool = Field(
        False,
        description="Accept schedules, for destinations with `delay`: such a stream must have no limits. Needs "
        "nats-server 2.12.",
    )

    @property
    def label(self) -> str:
        """The name that distinguishes it from all streams, those of other connections included."""
        return f"{self.name} on {self.connection}"

    @property
    def partitioning(self) -> Partitioning | None:
        """The partitions of its messages; None without `partitions`. Raises MappingError if they are not valid."""
        if self.partitions is None:
            return None
        by = tuple(self.partition_by or ())
        # A partition of the entire subject needs no pattern, so that further subjects do not change the transform.
        return Partitioning(self.partitions, by, tuple(self.subjects) if by else (EVERYTHING,))

    @property
    def transform(self) -> tuple[str, str] | None:
        """The source and the destination of its subject mapping; None without `partitions`, or with invalid ones."""
        try:
            partitioning = self.partitioning
        except (MappingError, SubjectError):
            return None
        return None if partitioning is None else partitioning.transforms[0]

    @property
    def is_copy(self) -> bool:
        """True if a route makes it, and copies its own stream into it."""
        return not self.subjects

    @property
    def stored_under(self) -> tuple[str, ...]:
        """Patterns of the subjects under which it stores messages."""
        return tuple(self.subjects if self.partitions is None else (f"*.{one}" for one in self.subjects))

    @property
    def config(self) -> StreamConfig:
        """Return the configuration that the stream is created with."""
        return StreamConfig(
            name=self.name,
            subjects=tuple(self.subjects),
            storage=self.storage,
            retention=self.retention,
            replicas=self.replicas,
            max_age=self.max_age,
            max_bytes=self.max_bytes or -1,
            max_messages=self.max_messages or -1,
            discard=self.discard,
            duplicate_window=self.duplicate_window,
            allow_batched=self.allow_batched,
            allow_message_ttl=self.allow_message_ttl,
            allow_message_schedules=self.allow_message_schedules,
            transform=self.transform,
        )
