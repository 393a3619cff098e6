"""Findings about the streams that routes read or send to, one for each stream. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.jetstream.streams import refuses
from router_trio.online.facts import ERROR, NOTE, WARNING, Facts, Finding, Found, UnaskedError, Unknown
from router_trio.online.parts import (
    Declared,
    Destination,
    Source,
    declared_for,
    destinations_of,
    partitioned_in,
    sources_of,
)
from router_trio.settings.units import format_duration

LIVENESS_INTERVALS = 2
"""Missed fences after which a link is lost."""


@dataclass(frozen=True, slots=True)
class UsedStream:
    """A stream that exists and is used. `path` is that of its entry in `[[streams]]`, or of the first use of it."""

    path: str
    connection: str
    info: StreamInfo
    sources: tuple[Source, ...]
    destinations: tuple[Destination, ...]
    declared: Declared | None


def used_streams(facts: Facts, unknown: Callable[[str, Unknown], None]) -> list[UsedStream]:
    """Return each stream that is known to be used, once for each connection.

    `unknown` is called with the path of each source and destination whose stream could not be asked, and the cause,
    unless its server could not be asked at all.
    """
    asked = {name for name, server in facts.servers.items() if not isinstance(server, Unknown)}
    sources: dict[tuple[str, str], list[Source]] = {}
    destinations: dict[tuple[str, str], list[Destination]] = {}
    found: dict[tuple[str, str], StreamInfo] = {}
    copied = [replace(one, stream=one.copy) for one in partitioned_in(facts.settings)]
    for source in (*sources_of(facts.settings), *copied):
        if source.connection not in asked:
            continue
        try:
            info = facts.stream(source.connection, source.stream)
        except UnaskedError as error:
            unknown(source.path, error.unknown)
            continue
        if info is not None:
            found[source.connection, info.name] = info
            sources.setdefault((source.connection, info.name), []).append(source)
    for to in destinations_of(facts.settings):
        if to.connection not in asked:
            continue
        try:
            takers = facts.takers(to)
        except UnaskedError as error:
            unknown(to.path, error.unknown)
            continue
        for info in takers:
            found[to.connection, info.name] = info
            destinations.setdefault((to.connection, info.name), []).append(to)
    return [
        _used(facts, key[0], info, tuple(sources.get(key, ())), tuple(destinations.get(key, ())))
        for key, info in found.items()
    ]


def _used(
    facts: Facts, connection: str, info: StreamInfo, read: tuple[Source, ...], sent: tuple[Destination, ...]
) -> UsedStream:
    declared = next((one for one in declared_for(facts.settings, connection) if one.stream.name == info.name), None)
    path = declared.path if declared is not None else sent[0].path if sent else read[0].key_path
    return UsedStream(path, connection, info, read, sent, declared)


def refuses_messages(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream of a destination that is sealed, sends no PubAcks, is full or has no quorum."""
    if used.destinations and (found := refuses(used.info)) is not None:
        yield Found(ERROR, used.path, found[1])


def not_available(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream of a source without a quorum."""
    if not used.destinations and (trouble := used.info.group.trouble) is not None:
        yield Found(ERROR, used.path, f"stream {used.info.name!r} is not available: {trouble}; restart its servers")


def lost_messages(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream whose server knows that it has lost messages."""
    if used.info.lost:
        cure = "run `router-trio audit` for the routes that use it, and restore a backup or publish them again"
        text = f"the server reports that stream {used.info.name!r} has lost {used.info.lost:,} messages; {cure}"
        yield Found(ERROR, used.path, text)


def copies_not_kept(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream with interest retention and no consumers, which acks copies and does not keep them."""
    info = used.info
    own = any(one.stream == info.name for one in used.sources)
    if used.destinations and info.retention == "interest" and not info.consumers and not own:
        text = (
            f"stream {info.name!r} has the retention interest and no consumers: it acks each copy and deletes it at "
            "once; create its consumers first, or use the retention limits"
        )
        yield Found(ERROR, used.path, text)


def acked_before_written(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream that confirms messages before they are written."""
    if used.destinations and used.info.persist_mode == "async":
        text = (
            f"stream {used.info.name!r} acks messages before they are written (persist_mode async), so that a crash "
            "of its server loses acked copies; use the persist mode default"
        )
        yield Found(WARNING, used.path, text)


def window_too_short(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream that forgets the ids of copies before they can be sent again."""
    window = used.info.duplicate_window
    needs = max((_needed_window(facts, to) for to in used.destinations), default=(0.0, ""))
    if used.destinations and window < needs[0]:
        text = (
            f"stream {used.info.name!r} remembers the ids of copies for {format_duration(window)} (duplicate_window), "
            f"and a copy may be sent again after {format_duration(needs[0])}, {needs[1]}: it is then stored twice; "
            "set duplicate_window to the longest planned outage"
        )
        yield Found(WARNING, used.path, text)


def _needed_window(facts: Facts, to: Destination) -> tuple[float, str]:
    """Return the seconds after which a copy may be sent again, and what takes so long."""
    connection, source = facts.settings.connections[to.connection], to.route.source
    takes = LIVENESS_INTERVALS * connection.liveness_interval + connection.connect_timeout
    outage = takes + connection.max_reconnect_delay
    needs = [(outage, f"an interruption of connection {to.connection} with one delay of max_reconnect_delay")]
    if facts.outage is not None:
        needs.append((facts.outage, "the outage of --outage"))
    if source.kind.redelivers:
        needs.append((source.ack_wait, f"the ack_wait of route {to.route.name}"))
        needs.append((to.route.retry_or_default.max, f"the longest delay in [routes.retry] of route {to.route.name}"))
    return max(needs)


def one_replica(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream of a cluster that is on one server only."""
    if used.info.replicas == 1 and used.info.group.cluster:
        text = (
            f"stream {used.info.name!r} has one replica in a cluster: without that server nothing can be stored or "
            "read, and its disk is the only copy; use replicas = 3"
        )
        yield Found(WARNING, used.path, text)


def replicas_behind(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find replicas that are offline or do not have all messages."""
    group = used.info.group
    if group.behind and group.trouble is None:
        names = excerpt(", ".join(group.behind))
        text = (
            f"stream {used.info.name!r} has replicas that are offline or behind: {names}; until they have everything, "
            "fewer servers may fail than it has replicas for"
        )
        yield Found(WARNING, used.path, text)


def size_too_small(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a stream that refuses messages as large as its source may contain."""
    most = used.info.max_message_size
    if most <= 0:
        return
    for to in used.destinations:
        largest, where = _largest(facts, to)
        if most < largest:
            text = (
                f"stream {used.info.name!r} refuses messages of more than {most} bytes (max_msg_size), and {where} may "
                f"have up to {largest}: such a copy fails with too_large; raise max_msg_size"
            )
            yield Found(WARNING, to.path, text)


def _largest(facts: Facts, to: Destination) -> tuple[int, str]:
    """Return the size in bytes of the largest message that a route may receive, and where it is from."""
    route = to.route
    stream = route.source.kind.stream(route.source)
    if stream is not None:
        info = facts.stream(route.source.connection, stream)
        if info is not None and info.max_message_size > 0:
            return info.max_message_size, f"those of stream {stream!r}"
    return facts.server(route.source.connection).max_payload, "those of the source's server"


def messages_expire(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a source that deletes messages by their age before a route can have read them, or later."""
    age = used.info.max_age
    # A value that expires in a bucket has to be absent from the copy too.
    if not age or all(source.route.source.kind.is_bucket for source in used.sources):
        return
    needs = max(_needed_age(facts, source) for source in used.sources)
    if age < needs:
        text = (
            f"stream {used.info.name!r} deletes messages after {format_duration(age)} (max_age), and an outage may "
            f"take {format_duration(needs)}: those not yet routed are lost; raise max_age"
        )
        yield Found(WARNING, used.path, text)
    elif used.declared is None or used.declared.stream.max_age != age:
        text = (
            f"stream {used.info.name!r} deletes messages after {format_duration(age)} (max_age), routed or not: an "
            "outage must not be longer"
        )
        yield Found(NOTE, used.path, text)


def _needed_age(facts: Facts, source: Source) -> float:
    """Return the seconds for which messages of a source must be kept."""
    connection = facts.settings.connections[source.connection]
    outage = LIVENESS_INTERVALS * connection.liveness_interval + connection.connect_timeout
    return max(outage + connection.max_reconnect_delay, source.route.source.ack_wait, facts.outage or 0.0)


def messages_discarded(facts: Facts, used: UsedStream) -> Iterator[Found]:
    """Find a source that deletes its oldest messages at a limit, routed or not."""
    info, declared = used.info, used.declared
    if not used.sources or info.discard != "old":
        return
    # A copy needs only the newest value of a key, which a bucket keeps.
    history = 0 if all(source.route.source.kind.is_bucket for source in used.sources) else info.max_messages_per_subject
    limits = [
        f"{value} {what}"
        for value, own, what in (
            (info.max_messages, declared.stream.max_messages if declared else 0, "messages (max_msgs)"),
            (info.max_bytes, declared.stream.max_bytes if declared else 0, "bytes (max_bytes)"),
            (history, 0, "messages of a subject (max_msgs_per_subject)"),
        )
        if value > 0 and value != own
    ]
    if limits:
        text = (
            f"stream {info.name!r} deletes its oldest messages, routed or not, at {' or '.join(limits)}; if a backlog "
            "may be larger, raise the limit or use discard = 'new'"
        )
        yield Found(NOTE, used.path, text)


FINDINGS: tuple[Finding[UsedStream], ...] = (
    lost_messages,
    copies_not_kept,
    refuses_messages,
    not_available,
    acked_before_written,
    window_too_short,
    messages_expire,
    messages_discarded,
    size_too_small,
    one_replica,
    replicas_behind,
)
"""Each finding about a stream that exists."""
