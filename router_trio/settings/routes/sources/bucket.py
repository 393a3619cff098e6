"""A KV bucket, read through a durable consumer of its stream: every put, delete and purge, and each expired value."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.protocol import buckets
from router_trio.settings.patterns import check_name
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.settings.routes.sources.kind import SourceKind
from router_trio.settings.routes.sources.stream import STREAM, check_consumer


class _Bucket(SourceKind):
    key = "bucket"
    noun = "a bucket"
    needed = "a bucket and a durable"
    keys = (
        "durable",
        "standby",
        "filter",
        "deliver",
        "max_in_flight",
        "max_in_flight_bytes",
        "ack_wait",
        "max_deliver",
        "nak_delay",
    )
    shown = ("bucket", "durable", "filter")
    redelivers = True
    is_stored = True
    is_bucket = True
    may_be_answered = False
    default_attempts = 0
    promise = "at least once"
    retried_from = ""
    given_up = "then given up"
    shared_by = "consumer"

    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        start = self.subject_prefix(source)
        return tuple(start + one for one in source.filters or (">",)) if start else ()

    def consumer_filters(self, source: SourceKeys) -> tuple[str, ...]:
        # A mirror has the subjects of the bucket that it mirrors, whose name only the server knows.
        return tuple(buckets.prefix_of("*") + one for one in source.filters or (">",))

    def subject_prefix(self, source: SourceKeys) -> str:
        return buckets.prefix_of(source.bucket) if source.bucket else ""

    def described(self, source: SourceKeys) -> str:
        return f"bucket {source.bucket}" + (f", filter {', '.join(source.filters)}" if source.filters else "")

    def stream(self, source: SourceKeys) -> str | None:
        return buckets.stream_of(source.bucket) if source.bucket else None

    def consumer(self, source: SourceKeys) -> tuple[str, str] | None:
        stream = self.stream(source)
        return None if stream is None or source.durable is None else (stream, source.durable)

    def named_in_spans(self, source: SourceKeys) -> tuple[tuple[str, str], ...]:
        stream = self.stream(source)
        return () if stream is None else (("messaging.nats.stream", stream),)

    def is_shared(self, source: SourceKeys) -> bool:
        return not source.standby

    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        yield from check_name(f"{path}.bucket", source.bucket, buckets.NAME)
        yield from check_consumer(path, source)

    def refuse(self, key: str, owner: SourceKind) -> str:
        if key in ("partitions", "partition_by"):
            return "is only for a stream; remove it, since one process reads a bucket"
        cure = "remove it, or use 'filter'" if key == "subject" else "remove it"
        return f"can't be combined with a bucket; {cure}"

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        yield Problem(
            f"{path}.bucket",
            f"is read by one process, since {workers} workers would copy the values of one key in any order, an older "
            "one over a newer one; run one worker",
        )

    def warnings(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        yield from STREAM.warnings(path, source)


BUCKET: SourceKind = _Bucket()
"""The kind of a source that names a bucket."""
