"""A KV bucket: a JetStream publish to the subject of a key, which the stream of the bucket confirms."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.protocol import buckets
from router_trio.protocol.permissions import kv_below
from router_trio.settings.patterns import check_name
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.destinations.kind import DestinationKind
from router_trio.settings.routes.sources.kind import SourceKind

SAME_KEY = "{{key()}}"
"""The mapping to the key of the message: the tokens of its subject after those of its bucket."""


class _Bucket(DestinationKind):
    key = "bucket"
    waits_for_puback = True
    is_bucket = True
    described = "KV bucket, waits for the PubAck"

    def template(self, to: DestinationKeys) -> str:
        return f"{buckets.prefix_of(to.bucket or '')}{to.key or SAME_KEY}"

    def published_to(self, to: DestinationKeys, api: str) -> str:
        return f"{kv_below(api)}.{to.bucket}.{to.key or SAME_KEY}"

    def stream(self, to: DestinationKeys) -> str | None:
        return buckets.stream_of(to.bucket or "")

    def subject_prefix(self, to: DestinationKeys, api: str) -> str:
        return f"{kv_below(api)}.{to.bucket}."

    def kept_headers(self, to: DestinationKeys, source: SourceKind) -> tuple[str, ...]:
        kept = super().kept_headers(to, source)
        return (*kept, *buckets.CARRIED) if source.is_bucket else kept

    def shown(self, to: DestinationKeys) -> dict[str, str | bool]:
        key = {} if to.key is None else {"key": to.key}
        return {"bucket": to.bucket or "", **key, "jetstream": True}

    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        yield from check_name(f"{path}.bucket", to.bucket, buckets.NOT_IN_NAMES)
        if to.subject:
            yield Problem(f"{path}.subject", "can't be combined with a bucket; remove it, or use 'key'")
        if to.jetstream is False:
            yield Problem(f"{path}.jetstream", "a bucket is a stream, which confirms each value; remove it")
        if to.stream is not None:
            text = f"the stream of bucket {to.bucket!r} is {self.stream(to)!r}; remove it"
            yield Problem(f"{path}.stream", text)
        if to.delay is not None:
            yield Problem(f"{path}.delay", "the stream of a bucket keeps no schedules; remove it")
        if to.reply:
            text = "can't be combined with a bucket, whose PubAck comes to the reply subject; remove one of them"
            yield Problem(f"{path}.reply", text)
        if to.last_writer:
            headers = to.headers.set or to.headers.remove
            for key, given in (("payload", to.payload), ("headers", headers), ("ttl", to.ttl), ("mirror", to.mirror)):
                if given:
                    text = "can't be combined with last_writer, since both buckets get the same values; remove it"
                    yield Problem(f"{path}.{key}", text)

    def check_source(self, path: str, to: DestinationKeys, source: SourceKind) -> Iterator[Problem]:
        if to.last_writer and not source.is_bucket:
            text = f"compares values of two buckets, and the source is {source.noun}; remove it"
            yield Problem(f"{path}.last_writer", text)
        if to.key is None and not source.is_bucket:
            text = f"missing; {source.noun} has no keys: give one, such as key = '{{{{wildcard(1)}}}}'"
            yield Problem(f"{path}.key", text)


BUCKET: DestinationKind = _Bucket()
"""The kind of a destination that names a bucket."""
