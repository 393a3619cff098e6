"""Findings about the partitions of routes: the stream that has them, and the bucket of the processes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.api import nanoseconds
from router_trio.nats.jetstream.sourced_stream import differs, drops, of_others, read_before, unsuitable
from router_trio.online.facts import ERROR, NOTE, WARNING, Facts, Finding, Found
from router_trio.online.parts import Source
from router_trio.settings.routes.sources.partitioned import partitioning_of

SILENT_FOR = 30.0
"""Seconds without a sign of the source after which a copy that lacks messages counts as stalled."""


def partitions_differ(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a stream whose partitions are not those of the route."""
    wanted, here = partitioning_of(source.route.source), source.connection
    assert wanted is not None, "only sources with partitions"
    if facts.stream(here, source.stream) is None:
        return
    found = facts.partitions(here, source.stream)
    if found is not None:
        name, origin = source.stream, ""
    elif facts.stream(here, source.copy) is not None:
        name, origin, found = source.copy, source.stream, facts.partitions(here, source.copy)
    else:
        return
    if (why := differs(name, wanted, origin, found)) is not None:
        yield Found(ERROR, f"{source.path}.partitions", f"the route is refused: {why}")
    elif found is not None and found.of_others:
        yield Found(ERROR, f"{source.path}.durable", of_others(name))


def copy_refused(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a stream that its server can't copy without a loss."""
    info = facts.stream(source.connection, source.stream)
    if info is None or not _has_copy(facts, source):
        return
    if (why := unsuitable(info, facts.server(source.connection).major_minor)) is not None:
        yield Found(ERROR, f"{source.path}.partitions", why)


def read_without_partitions(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable with which the route has read the stream before it had partitions: the copy is then refused."""
    if not _has_copy(facts, source) or facts.stream(source.connection, source.copy) is not None:
        return
    info = facts.consumer(source.connection, source.stream, source.durable)
    if info is not None:
        yield Found(ERROR, f"{source.path}.durable", read_before(info, source.route.source.deliver))


def copied(facts: Facts, source: Source) -> Iterator[Found]:
    """Note that a stream is copied, and what that costs."""
    if _has_copy(facts, source):
        exists = facts.stream(source.connection, source.copy) is not None
        made = "copies" if exists else "does not exist; the router creates it at its start, as a copy of"
        text = (
            f"stream {source.copy!r} {made} {source.stream!r}: each message that the route reads is stored twice, and "
            "costs the server some 20 us of a processor more; a transform of the stream itself costs nothing "
            "(`partitions` in [[streams]])"
        )
        yield Found(NOTE, f"{source.path}.partitions", text)


def copied_by_filters(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a stream that is copied by several filters, which is slow."""
    filters = source.route.source.filters
    if len(filters) > 1 and _has_copy(facts, source):
        text = (
            f"stream {source.copy!r} copies by {len(filters)} filters, which costs the server some 90 us of a "
            "processor for each message, four times as much as by one; use one filter with wildcards, or a transform "
            "of the stream itself (`partitions` in [[streams]])"
        )
        yield Found(WARNING, f"{source.path}.filter", text)


def _has_copy(facts: Facts, source: Source) -> bool:
    """Return True if the route reads a copy: its stream exists, and has no partitions itself."""
    info = facts.stream(source.connection, source.stream)
    return info is not None and facts.partitions(source.connection, source.stream) is None


def copy_drops(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a copy that drops messages with the id of an earlier one."""
    if facts.stream(source.connection, source.copy) is None:
        return
    found = facts.partitions(source.connection, source.copy)
    version = facts.server(source.connection).major_minor
    if found is not None and (why := drops(source.copy, found, version)) is not None:
        yield Found(ERROR, f"{source.path}.partitions", why)


def copy_stalled(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a copy that lacks messages and has not heard of its source for some time."""
    info, found = facts.stream(source.connection, source.copy), facts.partitions(source.connection, source.copy)
    if info is None or found is None or not found.lag or not info.now or not found.heard_at:
        return
    silent = (nanoseconds(info.now) - found.heard_at) / 1e9
    if silent > SILENT_FOR:
        text = (
            f"stream {source.copy!r} lacks {found.lag:,} messages of {source.stream!r}, which it has not heard of for "
            f"{silent:.0f} s: nothing is copied; check the leaders of both with `nats stream info`"
        )
        yield Found(ERROR, f"{source.path}.partitions", text)


def members_stay(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a bucket in which processes that have gone stay members."""
    info = facts.stream(source.connection, members.STREAM)
    if info is not None and not info.allow_message_ttl:
        yield Found(ERROR, f"{source.path}.partitions", str(members.keys_stay()))


FINDINGS: tuple[Finding[Source], ...] = (
    partitions_differ,
    copy_refused,
    read_without_partitions,
    copied,
    copied_by_filters,
    copy_drops,
    copy_stalled,
    members_stay,
)
"""Each finding about a source with partitions."""
