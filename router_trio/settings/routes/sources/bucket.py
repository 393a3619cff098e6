"""A KV bucket, read through a durable consumer of its stream: every put, delete and purge, and each expired value."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.protocol import buckets
from router_trio.settings.patterns import check_name
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.settings.routes.sources.kind import SourceKind
from router_trio.settings.routes.sources.stream import Stream

_OF_PARTITIONS = ("partitions", "partition_by")


class _Bucket(Stream):
    key = "bucket"
    noun = "a bucket"
    needed = "a bucket and a durable"
    keys = tuple(key for key in Stream.keys if key not in _OF_PARTITIONS)
    shown = ("bucket", "durable", "filter")
    is_bucket = True

    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        start = self.subject_prefix(source)
        return tuple(start + one for one in source.filters or (">",)) if start else ()

    def consumer_filters(self, source: SourceKeys) -> tuple[str, ...]:
        # A mirror has the subjects of the bucket that it mirrors, whose name only the server knows.
        return tuple(buckets.prefix_of("*") + one for one in source.filters or (">",))

    def subject_prefix(self, source: SourceKeys) -> str:
        return buckets.prefix_of(source.bucket) if source.bucket else ""

    def stream(self, source: SourceKeys) -> str | None:
        return buckets.stream_of(source.bucket) if source.bucket else None

    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        yield from check_name(f"{path}.bucket", source.bucket, buckets.NOT_IN_NAMES)
        yield from self.check_consumer(path, source)

    def refuse(self, key: str, owner: SourceKind) -> str:
        if key in _OF_PARTITIONS:
            return "is only for a stream; remove it, since one process reads a bucket"
        return super().refuse(key, owner)

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        yield Problem(
            f"{path}.bucket",
            f"is read by one process, since {workers} workers would copy the values of one key in any order, an older "
            "one over a newer one; run one worker",
        )


BUCKET: SourceKind = _Bucket()
"""The kind of a source that names a bucket."""
