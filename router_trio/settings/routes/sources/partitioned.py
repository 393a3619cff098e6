"""The partitions of a stream: how a route shares it with other processes, in the order of each key."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.subjects.partitions import EVERYTHING, Partitioning


def partitioning_of(source: SourceKeys) -> Partitioning | None:
    """Return the partitions of a valid source; None without `partitions`."""
    if source.partitions is None:
        return None
    return Partitioning(source.partitions, tuple(source.partition_by or ()), source.filters or (EVERYTHING,))


def key_of_partitions(source: SourceKeys) -> str:
    """Return what messages of one partition have in common, as text; an empty text without partitions."""
    if source.partitions is None:
        return ""
    if source.partition_by is None:
        return "subject"
    numbers = " and ".join(map(str, source.partition_by))
    return f"value of wildcard{'s' if len(source.partition_by) > 1 else ''} {numbers} of the filter"


def check_partitions(path: str, source: SourceKeys) -> Iterator[Problem]:
    """Yield each problem of `partitions` and `partition_by`."""
    by = source.partition_by
    if source.partitions is None:
        if by is not None:
            yield Problem(f"{path}.partition_by", "has no effect without 'partitions'; give their number, or remove it")
        return
    if source.standby:
        yield Problem(
            f"{path}.standby",
            "can't be combined with 'partitions': each partition has one process at a time anyway; remove it",
        )
    if by is None:
        return
    if len(set(by)) < len(by):
        twice = next(one for one in by if by.count(one) > 1)
        yield Problem(f"{path}.partition_by", f"names the wildcard {twice} twice; name each once")
    elif source.filter is None:
        yield Problem(
            f"{path}.partition_by",
            "names wildcards of 'filter', and there is none; give a filter such as 'orders.*.>', or remove it",
        )
    else:
        yield from _check_wildcards(path, source, by)


def _check_wildcards(path: str, source: SourceKeys, by: list[int]) -> Iterator[Problem]:
    for pattern in source.filters:
        count = pattern.split(".").count("*")
        missing = next((one for one in by if one > count), None)
        if missing is not None:
            has = {0: "no '*'", 1: "one '*'"}.get(count, f"{count} '*'")
            text = f"names the wildcard {missing}, and the filter {pattern!r} has {has}; name one that it has"
            yield Problem(f"{path}.partition_by", f"{text}, or put another '*' into the filter")
            return


def derived_stream(stream: str, durable: str) -> str:
    """Return the name of the stream that has the messages of another one with the token of their partition."""
    return f"{stream}-{durable}"


def durables(source: SourceKeys) -> tuple[str, ...]:
    """Return the names of the durable consumers of a source: one for each partition."""
    if source.durable is None:
        return ()
    if source.partitions is None:
        return (source.durable,)
    return tuple(f"{source.durable}-{number}" for number in range(source.partitions))
