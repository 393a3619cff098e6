"""A stream, read through a durable consumer: JetStream redelivers each message until it is acked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from router_trio.errors import Problem
from router_trio.settings.patterns import check_name, check_source_patterns
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.settings.routes.sources.kind import SourceKind
from router_trio.settings.routes.sources.partitioned import check_partitions, key_of_partitions
from router_trio.settings.units import format_duration

HASTY_ACK_WAIT = 0.5
"""Seconds of `ack_wait` below which it is probably a mistake: smaller values hardly work over a network."""


class Stream(SourceKind):
    """A stream with a durable consumer."""

    key = "stream"
    noun = "a stream"
    needed = "a stream and a durable"
    keys: ClassVar[tuple[str, ...]] = (
        "durable",
        "standby",
        "filter",
        "partitions",
        "partition_by",
        "deliver",
        "max_in_flight",
        "max_in_flight_bytes",
        "ack_wait",
        "max_deliver",
        "nak_delay",
    )
    shown = ("stream", "durable", "filter")
    redelivers = True
    is_stored = True
    may_be_answered = False
    default_attempts = 0
    promise = "at least once"
    retried_from = ""
    given_up = "then given up"
    shared_by = "consumer"

    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        return source.filters

    def described(self, source: SourceKeys) -> str:
        name = getattr(source, self.key)
        return f"{self.key} {name}" + (f", filter {', '.join(source.filters)}" if source.filters else "")

    def stream(self, source: SourceKeys) -> str | None:
        return source.stream

    def consumer(self, source: SourceKeys) -> tuple[str, str] | None:
        stream = self.stream(source)
        return None if stream is None or source.durable is None else (stream, source.durable)

    def named_in_spans(self, source: SourceKeys) -> tuple[tuple[str, str], ...]:
        stream = self.stream(source)
        return () if stream is None else (("messaging.nats.stream", stream),)

    def is_shared(self, source: SourceKeys) -> bool:
        # Processes with the same durable share the messages, unless one at a time gets all that keep an order.
        return not source.standby and source.partitions is None

    def kept_order(self, source: SourceKeys) -> str:
        return key_of_partitions(source)

    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        yield from check_name(f"{path}.stream", source.stream)
        yield from self.check_consumer(path, source)
        yield from check_partitions(path, source)

    def check_consumer(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        """Yield each problem of the keys of the durable consumer."""
        if source.durable is None:
            yield Problem(f"{path}.durable", "missing; name the durable consumer, it is created if absent")
        yield from check_source_patterns(f"{path}.filter", source.filter, "filter")
        yield from check_name(f"{path}.durable", source.durable)

    def refuse(self, key: str, owner: SourceKind) -> str:
        cure = "remove it, or use 'filter'" if key == "subject" else "remove it"
        return f"can't be combined with {self.noun}; {cure}"

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        if source.standby:
            yield Problem(
                f"{path}.standby",
                f"gives all messages to one process, so {workers} workers can't share them; remove it, or run one "
                "worker",
            )

    def warnings(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        if source.ack_wait < HASTY_ACK_WAIT:
            yield Problem(
                f"{path}.ack_wait",
                f"{format_duration(source.ack_wait)} is short: a message that takes longer is "
                "redelivered while it is processed; use the longest time of handler and destinations, plus some "
                "seconds",
            )


STREAM: SourceKind = Stream()
"""The kind of a source that names a stream."""
