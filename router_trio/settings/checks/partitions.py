"""Check the partitions of routes and of `[[streams]]`, and whether those of a route and its stream agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router_trio.errors import MappingError, Problem
from router_trio.protocol.stream_config import StreamConfig
from router_trio.settings.checks.resolve import Connections, by_name, copy_read, stream_read
from router_trio.settings.routes import SourceSettings
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.settings.streams import StreamSettings


def check_partitions(
    sources: Sequence[SourceSettings | None],
    streams: Sequence[StreamSettings | None],
    connections: Connections | None,
) -> Iterator[Problem]:
    """Yield each problem. `sources` are those of all routes; None stands for a section that was refused already."""
    named, known = by_name(streams), connections or {}
    copies: dict[int, int] = {}
    for index, source in enumerate(sources):
        if source is None or source.partitions is None:
            continue
        if (read := stream_read(source, known, named)) is not None and read[1].partitions is not None:
            yield from _check_agreement(index, source, *read)
        elif (copy := copy_read(source, known, named)) is not None:
            copies[copy[0]] = index
    for number, stream in enumerate(streams):
        if stream is None:
            continue
        path = f"streams[{number}]"
        yield from _check_wildcards(path, stream)
        if number in copies:
            yield from _check_copy(path, stream, f"routes[{copies[number]}]")
        elif not stream.subjects and None not in sources:
            yield Problem(f"{path}.subjects", "missing; list the subjects that the stream takes")


def declared_copy(
    source: SourceSettings, connections: Connections, streams: Sequence[StreamSettings]
) -> StreamConfig | None:
    """Return the entry of `[[streams]]` for the copy that a partitioned route reads; None without one."""
    found = copy_read(source, connections, by_name(streams))
    return None if found is None else found[1].config


def _check_agreement(index: int, source: SourceSettings, number: int, stream: StreamSettings) -> Iterator[Problem]:
    try:
        wanted, found = partitioning_of(source), stream.partitioning
    except MappingError:
        return  # reported for the keys themselves
    assert wanted is not None
    assert found is not None
    if (why := wanted.disorder(found)) is not None:
        where = f"streams[{number}]"
        text = f"differs from the partitions of {where} ({stream.name}): {why}; correct one of them"
        yield Problem(f"routes[{index}].from.partitions", text, other=where)


def _check_wildcards(path: str, stream: StreamSettings) -> Iterator[Problem]:
    by = stream.partition_by
    if by is None:
        return
    path = f"{path}.partition_by"
    if stream.partitions is None:
        yield Problem(path, "has no effect without 'partitions'; give their number, or remove it")
    elif len(set(by)) < len(by):
        twice = next(one for one in by if by.count(one) > 1)
        yield Problem(path, f"names the wildcard {twice} twice; name each once")
    elif len(stream.subjects) > 1:
        yield Problem(
            path,
            f"names wildcards of one subject, and there are {len(stream.subjects)}: a stream has one transform; use "
            "one stream for each subject, or remove it, so that the entire subject determines the partition",
        )
    elif stream.subjects:
        count = stream.subjects[0].split(".").count("*")
        missing = next((one for one in by if one > count), None)
        if missing is not None:
            has = {0: "no '*'", 1: "one '*'"}.get(count, f"{count} '*'")
            text = f"names the wildcard {missing}, and the subject {stream.subjects[0]!r} has {has}"
            yield Problem(path, f"{text}; name one that it has, or put another '*' into the subject")


_SET_BY_ROUTE = ("subjects", "partitions", "partition_by")


def _check_copy(path: str, stream: StreamSettings, route: str) -> Iterator[Problem]:
    for key in _SET_BY_ROUTE:
        if getattr(stream, key):
            text = f"can't be set: {route} makes {stream.name!r}, and copies its own stream into it; remove it"
            yield Problem(f"{path}.{key}", text, other=route)
    if stream.retention == "interest":
        text = "is 'interest', which deletes what is copied before all durables exist; use 'limits' or 'workqueue'"
        yield Problem(f"{path}.retention", text, other=route)
    if stream.duplicate_window is not None:
        text = "would drop messages with the id of an earlier one, which the copied stream has stored; remove it"
        yield Problem(f"{path}.duplicate_window", text, other=route)
    if stream.allow_batched:
        text = f"has no effect: nothing is published to {stream.name!r}, which {route} makes; remove it"
        yield Problem(f"{path}.allow_batched", text, other=route)
