"""Findings about the sources of routes that read streams. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import SourceError
from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.consumer_config import compare
from router_trio.online.facts import ERROR, NOTE, WARNING, Facts, Finding, Found
from router_trio.online.parts import Source, declared_for
from router_trio.protocol.consumer import ConsumerSpec, beyond_end
from router_trio.protocol.stream_config import StreamSubjects
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.subjects.patterns import overlaps
from router_trio.subjects.shapes import mapped, meet


def source_missing(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a stream to read that does not exist."""
    if facts.stream(source.connection, source.stream) is not None:
        return
    if not any(one.stream.name == source.stream for one in declared_for(facts.settings, source.connection)):
        text = (
            f"there is no stream {source.stream!r}, so the route receives nothing; create it, correct the name, or "
            "list it in [[streams]]"
        )
        yield Found(ERROR, source.key_path, text)


def filter_matches_nothing(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a filter that matches no subject of its stream."""
    info = facts.stream(source.connection, source.stream)
    if info is None or info.stores.has_others:
        return
    stored = _stored(info.subjects, info.stores)
    for one in source.route.source.kind.consumer_filters(source.route.source):
        if not any(overlaps(one, subject) for subject in stored):
            text = (
                f"{one!r} matches none of the subjects of stream {source.stream!r}, which are "
                f"{excerpt(', '.join(stored)) or 'none'}: nothing is received; correct the filter or the subjects"
            )
            yield Found(ERROR, f"{source.path}.filter", text)


def _stored(subjects: tuple[str, ...], stores: StreamSubjects) -> list[str]:
    """Return the subjects under which a stream may store messages."""
    if stores.transform is None:
        return list(subjects)
    source, destination = stores.transform
    changed = (meet(tuple(source.split(".")), tuple(one.split("."))) for one in subjects)
    return [*subjects, *(".".join(mapped(source, destination, one)) for one in changed if one is not None)]


def durable_differs(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable that does not do what the route needs."""
    info = facts.consumer(source.connection, source.stream, source.durable)
    if info is None:
        return
    try:
        compare(_spec(source), info)
    except SourceError as error:
        yield Found(ERROR, f"{source.path}.durable", str(error))


def _spec(source: Source) -> ConsumerSpec:
    keys = source.route.source
    partitions = partitioning_of(keys)
    filters = keys.kind.consumer_filters(keys)
    if partitions is not None and source.partition is not None:
        filters = partitions.filters(source.partition)
    return ConsumerSpec(
        stream=source.stream,
        durable=source.durable,
        filters=filters,
        ack_wait=keys.ack_wait,
        max_deliver=-1,
        max_ack_pending=keys.max_in_flight,
        standby=keys.standby or source.partition is not None,
        deliver=keys.deliver,
    )


def delivery_limit_removed(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable whose limit of deliveries the router removes, while nothing else gives a message up."""
    info = facts.consumer(source.connection, source.stream, source.durable)
    if info is None or info.config.max_deliver <= 0 or source.route.retry_or_default.attempts:
        return
    most = info.config.max_deliver
    text = (
        f"the durable {source.durable!r} of stream {source.stream!r} has max_deliver = {most}, which the router "
        "removes, since it counts attempts itself: a message that always fails is then retried without end; set "
        f"attempts = {most} in [routes.retry], and [routes.dead_letter] to keep what is given up"
    )
    yield Found(NOTE, f"{source.path}.durable", text)


def durable_paused(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable that is paused on the server."""
    info = facts.consumer(source.connection, source.stream, source.durable)
    if info is not None and info.paused:
        until = f" until {info.config.pause_until}" if info.config.pause_until else ""
        text = (
            f"the durable {source.durable!r} of stream {source.stream!r} is paused{until}, so the route receives "
            "nothing; resume it"
        )
        yield Found(WARNING, f"{source.path}.durable", text)


def durable_shared(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable from which clients are pulling now, unless the route has created it: then its processes are."""
    info = facts.consumer(source.connection, source.stream, source.durable)
    if info is None or source.route.source.standby or info.config.route == source.route.name:
        return
    if info.num_waiting:
        text = (
            f"clients are pulling from the durable {source.durable!r} of stream {source.stream!r} now, which this "
            "route has not created: if they are not processes of this configuration, each gets only a part of the "
            "messages; use another durable"
        )
        yield Found(NOTE, f"{source.path}.durable", text)


def lost_without_durable(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a stream that deletes messages until the durable is created, because nothing is interested in them."""
    info = facts.stream(source.connection, source.stream)
    if info is None or info.retention != "interest":
        return
    if facts.consumer(source.connection, source.stream, source.durable) is None:
        text = (
            f"stream {source.stream!r} has the retention interest, and the durable {source.durable!r} does not exist: "
            "messages are deleted until the router creates it; start the router before the publishers"
        )
        yield Found(WARNING, f"{source.path}.durable", text)


def start_refused(facts: Facts, source: Source) -> Iterator[Found]:
    """Find a durable that can't be created: behind the end of its stream, or not at the start of a work queue."""
    info = facts.stream(source.connection, source.stream)
    if info is None or source.route.source.deliver == "all":
        return
    beyond = beyond_end(_spec(source), info.last_sequence)
    if info.retention != "workqueue" and beyond is None:
        return
    if facts.consumer(source.connection, source.stream, source.durable) is not None:
        return
    if beyond is not None:
        yield Found(ERROR, f"{source.path}.deliver", str(beyond))
    if info.retention == "workqueue":
        text = (
            f"stream {source.stream!r} is a work queue, whose consumers must start at the first message: the durable "
            "can't be created; use deliver = 'all'"
        )
        yield Found(ERROR, f"{source.path}.deliver", text)


FINDINGS: tuple[Finding[Source], ...] = (
    source_missing,
    filter_matches_nothing,
    durable_differs,
    delivery_limit_removed,
    start_refused,
    lost_without_durable,
    durable_paused,
    durable_shared,
)
"""Each finding about a source without partitions."""

STREAM: tuple[Finding[Source], ...] = (source_missing, filter_matches_nothing)
"""Each finding about the stream of a source with partitions."""

DURABLE: tuple[Finding[Source], ...] = (durable_differs, delivery_limit_removed, durable_paused)
"""Each finding about the durable of a partition."""
